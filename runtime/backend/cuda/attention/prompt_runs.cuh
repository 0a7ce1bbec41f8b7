// Which tokens of a step follow one another in a sequence, and what of them a block attends with.
// All attention kernels decide by it, so that each token is computed by one of them.
#pragma once

#include "runtime/backend/cuda/attention/attention.h"
#include "runtime/backend/cuda/device/step_layout.h"
#include "runtime/backend/cuda/device/step_tables.h"

namespace moed::backend {

// Tokens [begin, end) of the step.
struct PromptRun {
  int begin;
  int end;
  __device__ bool IsTiled() const { return end - begin >= kLeastPromptTokens; }
};

// Whether token `i` + 1 follows token `i` in its sequence.
__device__ inline bool FollowedBySame(const StepTablesView& step, int i) {
  return step.positions[i] >= 0 && step.positions[i + 1] == step.positions[i] + 1 &&
         step.block_begin[i + 1] == step.block_begin[i];
}

// The run that `token` stands in, within its tile.
__device__ inline PromptRun RunOf(const StepTablesView& step, int tokens, int token) {
  const int first = token / kPromptTileTokens * kPromptTileTokens;
  const int last = min(first + kPromptTileTokens, tokens) - 1;
  PromptRun run = {token, token + 1};
  while (run.begin > first && FollowedBySame(step, run.begin - 1)) --run.begin;
  while (run.end <= last && FollowedBySame(step, run.end - 1)) ++run.end;
  return run;
}

// A run, those heads of a KV head that a block attends with, and the positions that any of its
// tokens sees.
struct PromptWork {
  PromptRun run;
  int kv_head;
  int first_head;
  int heads;
  int begin;
  int end;
};

// Calls function(PromptWork) for each tiled run of a block's tile, with at most kHeads heads. Grid:
// (tiles of tokens, KV heads and groups of their query heads). The last tiles see most keys, so
// they come first.
template <int kHeads, class Function>
__device__ __forceinline__ void ForEachPromptRun(const AttentionArguments& a,
                                                 const Function& function) {
  const int heads_per_kv = a.query_heads / a.kv_heads;
  const int groups = (heads_per_kv + kHeads - 1) / kHeads;
  PromptWork work;
  work.kv_head = blockIdx.y / groups;
  work.first_head = work.kv_head * heads_per_kv + blockIdx.y % groups * kHeads;
  work.heads = min(kHeads, (work.kv_head + 1) * heads_per_kv - work.first_head);
  const int first = (gridDim.x - 1 - blockIdx.x) * kPromptTileTokens;
  const int end = min(first + kPromptTileTokens, a.tokens);
  for (int token = first; token < end; token = work.run.end) {
    work.run = RunOf(a.step, a.tokens, token);
    if (!work.run.IsTiled()) continue;
    const int first_end = a.step.positions[work.run.begin] + 1;
    work.begin = a.sliding_window > 0 ? max(0, first_end - a.sliding_window) : 0;
    work.end = a.step.positions[work.run.end - 1] + 1;
    function(work);
  }
}

// The positions that two tokens see, whose rows a thread works on. None, where there is no token.
struct VisibleKeys {
  int begin[2];
  int end[2];

  __device__ void Set(int half, const AttentionArguments& a, int token, bool present) {
    end[half] = present ? a.step.positions[token] + 1 : 0;
    begin[half] = a.sliding_window > 0 ? max(0, end[half] - a.sliding_window) : 0;
  }
  // Whether both see all keys of [first, first + count).
  __device__ bool SeeAll(int first, int count) const {
    return first >= max(begin[0], begin[1]) && first + count <= min(end[0], end[1]);
  }
  __device__ bool Hides(int half, int key) const { return key < begin[half] || key >= end[half]; }
};

}  // namespace moed::backend
