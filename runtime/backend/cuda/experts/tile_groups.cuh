// What the two passes over experts in VRAM (two_pass_experts.h) share: the tiles of an expert that
// a block works on with the tokens of its joined tasks, and the activations between the passes.
#pragma once

#include "runtime/backend/cuda/experts/expert_tile_walk.cuh"

namespace moed::backend {

inline constexpr int kMostGroupTokens = kMostJoinedTasks * kTaskTokens;

// Of a tile for the tokens of a task; of the first of joined tasks also the tile's bases (bf12).
struct TileActivations {
  __nv_bfloat16 tokens[kTaskTokens][kTileNeurons];
  uint8_t down_bases[kTileNeurons];
  uint8_t reserved[8];  // copied in pieces of 16 bytes
};
static_assert(sizeof(TileActivations) == kTileActivationBytes);

// Of tile `tile` of the expert of task `task`, whose experts have `num_tiles`.
__device__ inline TileActivations* ActivationsOf(const ExpertTilesArguments& a, int task,
                                                 int num_tiles, int tile) {
  return reinterpret_cast<TileActivations*>(a.activations) + size_t(task) * num_tiles + tile;
}

// An expert's tiles [begin, end), counted as the span does, that are a block's.
struct TileGroup {
  const std::byte* blob;
  int task;  // the first of those joined
  int num_joined;
  int num_tiles;   // of the expert
  int first_tile;  // of the expert
  int begin;
  int end;

  __device__ void Set(const TaskCursor& cursor, int first, int last) {
    blob = cursor.task().blob;
    task = cursor.index();
    num_joined = cursor.task().num_joined;
    num_tiles = cursor.task().num_tiles;
    first_tile = cursor.task().first_tile;
    begin = first;
    end = min(last, first_tile + num_tiles);
  }
  template <class Format>
  __device__ const std::byte* Address(int tile, const ExpertTilesArguments& a) const {
    return blob + Format::TileOffset(tile - first_tile, a.hidden, a.list_bytes);
  }
};

// What a block works on, in shared memory.
struct GateUpState {
  TileGroup group;
  TileGroup next;                   // after it, if `group` is not the block's last
  int32_t token[kMostGroupTokens];  // of the group's tasks: row of x; -1: none
  int32_t target[kMostGroupTokens];
  float weight[kMostGroupTokens];

  // Before the block's first group.
  __device__ void Begin(const TaskCursor& cursor, const TileRange& range) {
    if (threadIdx.x == 0) next.Set(cursor, range.begin, range.end);
  }
  // To the next group; all threads call it, when none needs the last one any more. `cursor`: of
  // thread 0.
  template <int kTokenTiles>
  __device__ void Enter(const ExpertTaskSpan& span, const TileRange& range, TaskCursor* cursor) {
    __syncthreads();
    if (threadIdx.x == 0) {
      group = next;
      next.begin = next.end = group.end;
      if (group.end < range.end) {
        cursor->MoveTo(group.end);
        next.Set(*cursor, group.end, range.end);
      }
    }
    __syncthreads();
    const int i = threadIdx.x;
    if (i < kTokenTiles * kTaskTokens) {
      const ExpertTask& task = span.tasks[group.task + i / kTaskTokens];
      const int of_task = i % kTaskTokens;
      const bool present = i / kTaskTokens < group.num_joined && of_task < task.num_tokens;
      token[i] = present ? task.token[of_task] : -1;
      target[i] = present ? task.target[of_task] : 0;
      weight[i] = present ? task.weight[of_task] : 0.0f;
    }
    __syncthreads();
  }
};

}  // namespace moed::backend
