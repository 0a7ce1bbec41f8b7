// Which tokens of a step follow one another in a sequence. Both attention kernels decide by it, so
// that each token is computed by one of them.
#pragma once

#include "runtime/backend/cuda/prompt_attention.h"
#include "runtime/backend/cuda/step_tables.h"

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

}  // namespace moed::backend
