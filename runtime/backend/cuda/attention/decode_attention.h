// PrepareQkv and Attention of backend.h in one launch, for steps in which no two tokens are of the
// same sequence: what a block attends to was in the cache before the step, but for the token's own
// key and value, which the block that attends to them prepares. So it reads its keys while the
// projections are still being made.
#pragma once

#include <cuda_runtime.h>

#include "runtime/backend/cuda/attention/attention.h"
#include "runtime/backend/cuda/attention/prepare_qkv.h"

namespace moed::backend {

struct DecodeAttentionArguments {
  PrepareQkvArguments prepare;   // q, k and v are only read
  AttentionArguments attention;  // but for q
};

// Whether the kernel takes such heads, and a step of so many tokens.
bool DecodeAttentionSupports(const PrepareQkvArguments& prepare, int tokens);

// As many splits as AttentionSplits gives.
cudaError_t LaunchDecodeAttention(const DecodeAttentionArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
