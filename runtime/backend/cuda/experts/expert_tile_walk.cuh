// How a block of 16 warps walks tiles of 8 neurons for up to 8 tokens: where tiles lie, the task
// and its tokens in shared memory, the way from partial sums to activations, and out to memory.
// What expert_tiles.cu and link_tiles.cuh share; a format is as in bf16_experts.cuh.
#pragma once

#include <cuda_bf16.h>

#include "runtime/backend/cuda/experts/expert_tiles.h"
#include "runtime/backend/cuda/primitives/global_add.cuh"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {

inline constexpr int kTileWarps = 16;
inline constexpr int kTileThreads = kTileWarps * 32;
inline constexpr int kWarpColumns = 128;
inline constexpr int kSliceColumns = kTileWarps * kWarpColumns;
// Keeps the rows of different tokens in different banks.
inline constexpr int kTokenPadding = 8;

__host__ __device__ constexpr int NumSlices(int hidden) {
  return (hidden + kSliceColumns - 1) / kSliceColumns;
}
__host__ __device__ constexpr int TokenStride(int hidden) {
  return NumSlices(hidden) * kSliceColumns + kTokenPadding;
}
__host__ __device__ constexpr int TokenBytes(int hidden) {
  return kTaskTokens * TokenStride(hidden) * 2;
}

// Tiles [begin, end) of `span` for block `index` of `count`.
struct TileRange {
  int begin;
  int end;

  __device__ TileRange(const ExpertTaskSpan& span, int index, int count)
      : begin(int(int64_t{span.num_tiles} * index / count)),
        end(int(int64_t{span.num_tiles} * (index + 1) / count)) {}
};

// Where a block stands in the list of tasks.
class TaskCursor {
 public:
  // At the task that holds tile `first`. By whole warps, which probe 32 tasks at a time.
  __device__ TaskCursor(const ExpertTaskSpan& span, int first) : tasks_(span.tasks) {
    const int lane = threadIdx.x % 32;
    for (int last = span.num_tasks - 1; index_ < last;) {
      const int step = (last - index_ + 31) / 32;
      const int probe = index_ + (lane + 1) * step;
      const bool begun = probe <= last && tasks_[probe].first_tile <= first;
      index_ += __popc(__ballot_sync(0xffffffffu, begun)) * step;
      last = min(last, index_ + step - 1);
    }
  }
  __device__ void MoveTo(int tile) {
    while (tile >= tasks_[index_].first_tile + tasks_[index_].num_tiles) ++index_;
  }
  __device__ const ExpertTask& task() const { return tasks_[index_]; }
  __device__ int index() const { return index_; }
  template <class Format>
  __device__ const std::byte* TileAddress(int tile, const ExpertTilesArguments& a) const {
    return task().blob + Format::TileOffset(tile - task().first_tile, a.hidden, a.list_bytes);
  }

 private:
  const ExpertTask* tasks_;
  int index_ = 0;
};

// Where the tiles that are fetched one after the other lie: looks at a task once.
template <class Format>
class TileAddresses {
 public:
  __device__ TileAddresses(const ExpertTaskSpan& span, TileRange range)
      : cursor_(span, range.begin), end_(range.end) {}

  // Null behind the range.
  __device__ const std::byte* At(int tile, const ExpertTilesArguments& a) {
    if (tile >= end_) return nullptr;
    if (tile >= task_end_) {
      cursor_.MoveTo(tile);
      blob_ = cursor_.task().blob;
      task_begin_ = cursor_.task().first_tile;
      task_end_ = task_begin_ + cursor_.task().num_tiles;
    }
    return blob_ + Format::TileOffset(tile - task_begin_, a.hidden, a.list_bytes);
  }

 private:
  TaskCursor cursor_;
  int end_;
  const std::byte* blob_ = nullptr;
  int task_begin_ = 0;
  int task_end_ = 0;
};

// Where tile `tile` lies in the slot that its task fills; null if it fills none.
template <class Format>
__device__ std::byte* FillAddress(const ExpertTask& task, int tile, const ExpertTilesArguments& a) {
  if (task.fill == nullptr) return nullptr;
  return task.fill + Format::TileOffset(tile - task.first_tile, a.hidden, a.list_bytes);
}

// With the last tile before it, a list of escapes is written into the slot that the task fills.
template <class Format>
__device__ void FillList(const ExpertTask& task, int tile, const ExpertTilesArguments& a) {
  if constexpr (Format::kHasEscapes) {
    const int index = tile - task.first_tile;
    const bool last = index % Format::kListTiles == Format::kListTiles - 1;
    if (task.fill == nullptr || !(last || index == task.num_tiles - 1)) return;
    const size_t offset = Format::ListOffset(index, a.hidden, a.list_bytes);
    const auto* source = reinterpret_cast<const uint4*>(task.blob + offset);
    auto* target = reinterpret_cast<uint4*>(task.fill + offset);
    for (int i = threadIdx.x; i < a.list_bytes / 16; i += kTileThreads) target[i] = source[i];
  }
}

// Of the tile being worked on and the one before it, so that one barrier a tile is enough.
struct TileState {
  float partial[2][kTileWarps][4][33];  // gate and up sums of each warp's columns
  __align__(16) __nv_bfloat16 activations[2][kTaskTokens][kTileNeurons];
  // Of the tile's neurons in a format with escapes: headers, and bases of the down rows.
  __align__(16) uint32_t headers[2][kTileNeurons][8];
  __align__(8) uint8_t down_bases[2][kTileNeurons];
  ExpertTask task;
};

__device__ inline void LoadTask(const ExpertTask& task, TileState* state) {
  __syncthreads();
  if (threadIdx.x < sizeof(ExpertTask) / 4) {
    reinterpret_cast<uint32_t*>(&state->task)[threadIdx.x] =
        reinterpret_cast<const uint32_t*>(&task)[threadIdx.x];
  }
  __syncthreads();
}

// The task's tokens into shared memory, absent tokens and columns as zeros.
__device__ inline void LoadTokens(const ExpertTask& task, const __nv_bfloat16* x, int hidden,
                                  __nv_bfloat16* tokens) {
  const int stride = TokenStride(hidden);
  const int chunks = (stride - kTokenPadding) / 8;
  for (int i = threadIdx.x; i < kTaskTokens * chunks; i += kTileThreads) {
    const int token = i / chunks;
    const int column = i % chunks * 8;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (token < task.num_tokens && column < hidden) {
      value = *reinterpret_cast<const uint4*>(x + size_t(task.token[token]) * hidden + column);
    }
    *reinterpret_cast<uint4*>(tokens + token * stride + column) = value;
  }
  __syncthreads();
}

// Where the rows of a task's tokens are: here in shared memory, as LoadTokens leaves them.
struct SharedTokens {
  const __nv_bfloat16* tokens;
  int hidden;

  __device__ const __nv_bfloat16* Row(int token) const {
    return tokens + token * TokenStride(hidden);
  }
};

// What the products call where nothing is loaded anew.
struct NothingToLoad {
  template <class Piece>
  __device__ void operator()(Piece) const {}
};

// Some neurons of the task's expert on their way through a block: a whole tile, or what is in
// shared memory of one.
template <int kNeurons>
struct NeuronGroup {
  int first_neuron;  // in the expert
  int buffer;        // of TileState: 0 or 1, in turns
};

// sums: gate (0, 1) and up (2, 3) of neuron lane / 4 for tokens 2 (lane % 4) and the next, as the
// tensor cores leave them. Adds what the weights' escapes change; `tokens` as SharedTokens.
template <class Format, int kNeurons, class Tokens>
__device__ void AddGateUpEscapes(const ExpertTilesArguments& a,
                                 const typename Format::Header& header, const TileState& state,
                                 NeuronGroup<kNeurons> group, const Tokens& tokens, int column,
                                 int lane, float (&sums)[4]) {
  if constexpr (Format::kHasEscapes) {
    const __nv_bfloat16* const first_row = tokens.Row(2 * (lane % 4));
    const __nv_bfloat16* const second_row = tokens.Row(2 * (lane % 4) + 1);
    Format::template ForEachEscape<0, 2, kNeurons>(
        header, state.task.blob, group.first_neuron, a.hidden, a.list_bytes, column, lane,
        [&](int neuron, int part, int at, float delta) {
          const float factor = neuron == lane / 4 ? delta : 0.0f;
          const float first = factor * __bfloat162float(first_row[at]);
          const float second = factor * __bfloat162float(second_row[at]);
          sums[0] += part == 0 ? first : 0.0f;
          sums[1] += part == 0 ? second : 0.0f;
          sums[2] += part == 0 ? 0.0f : first;
          sums[3] += part == 0 ? 0.0f : second;
        });
  }
}

// Adds the escapes of the down rows straight to the output.
template <class Format, int kNeurons>
__device__ void AddDownEscapes(const ExpertTilesArguments& a, const typename Format::Header& header,
                               const TileState& state, NeuronGroup<kNeurons> group, int column,
                               int lane) {
  if constexpr (Format::kHasEscapes) {
    Format::template ForEachEscape<2, 3, kNeurons>(
        header, state.task.blob, group.first_neuron, a.hidden, a.list_bytes, column, lane,
        [&](int neuron, int, int at, float delta) {
          if (lane >= state.task.num_tokens) return;
          const float activation = __bfloat162float(state.activations[group.buffer][lane][neuron]);
          atomicAdd(a.output + size_t(state.task.target[lane]) * a.hidden + at,
                    state.task.weight[lane] * activation * delta);
        });
  }
}

__device__ inline void StorePartial(const float (&sums)[4], int buffer, int warp, int lane,
                                    TileState* state) {
#pragma unroll
  for (int r = 0; r < 4; ++r) state->partial[buffer][warp][r][lane] = sums[r];
}

// What Activate calls where escapes are added by the warps that multiply.
struct NoEscapes {
  __device__ void AddToSums(int, int, int, float&, float&) {}
  __device__ void AddToOutput(float) {}
};

// silu(gate) * up of `neurons` neurons, zeros for others, from all warps' partial sums behind a
// barrier: eight lanes to a neuron and token. Another barrier, and all see it in
// state->activations[buffer]. `escapes` (tile_escapes.cuh): what is to be added on the way.
template <class Escapes = NoEscapes>
__device__ inline void Activate(int buffer, int neurons, TileState* state,
                                Escapes escapes = Escapes()) {
  constexpr int kLanes = kTileThreads / (kTaskTokens * kTileNeurons);
  constexpr int kEach = kTileWarps / kLanes;
  const int pair = threadIdx.x / kLanes;
  const int r = pair / 32;
  const int source = pair % 32;
  const int token = 2 * (source % 4) + r;
  const int neuron = source / 4;
  const int share = threadIdx.x % kLanes;
  float gate = 0.0f;
  float up = 0.0f;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const auto& partial = state->partial[buffer][share * kEach + i];
    gate += partial[r][source];
    up += partial[2 + r][source];
  }
  escapes.AddToSums(token, neuron, share, gate, up);
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    gate += __shfl_xor_sync(0xffffffffu, gate, offset);
    up += __shfl_xor_sync(0xffffffffu, up, offset);
  }
  const bool present = token < state->task.num_tokens && neuron < neurons;
  const __nv_bfloat16 activation = __float2bfloat16(present ? Silu(gate) * up : 0.0f);
  if (share == 0) state->activations[buffer][token][neuron] = activation;
  escapes.AddToOutput(__bfloat162float(activation));
}

// Of token lane / 4, neurons 2 (lane % 4) and the next.
__device__ inline uint32_t ActivationPair(const TileState& state, int buffer, int lane) {
  return *reinterpret_cast<const uint32_t*>(&state.activations[buffer][lane / 4][2 * (lane % 4)]);
}

// Adds a warp's accumulators, times the router's weight, to its columns of the output; clears
// them.
template <class Format>
__device__ void Flush(const ExpertTask& task, int hidden, int column, int lane, float* output,
                      float (&out)[8][4]) {
  const int num_tokens = task.num_tokens;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int token = 2 * (lane % 4) + i;
    if (token < num_tokens) {
      const float weight = task.weight[token];
      float* const row = output + size_t(task.target[token]) * hidden;
#pragma unroll
      for (int m = 0; m < 8; m += 2) {  // four neighbouring columns
        const int target = column + Format::OutputColumn(lane, m, 0);
        if (target < hidden) {
          AddToGlobal(row + target,
                      make_float4(weight * out[m][i], weight * out[m][2 + i],
                                  weight * out[m + 1][i], weight * out[m + 1][2 + i]));
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < 8; ++m) {
#pragma unroll
    for (int r = 0; r < 4; ++r) out[m][r] = 0.0f;
  }
}

}  // namespace moed::backend
