// Attention of prompts on Hopper: what prompt_attention.h computes, for the same runs of tokens, by
// warpgroup products. Queries and probabilities are rounded to bf16, as keys and values are.
#pragma once

#include <cuda_runtime.h>

#include "runtime/backend/cuda/attention/attention.h"

namespace moed::backend {

// Raises the kernels' shared-memory limit; once per device, before the first launch. False: the
// device, or what was compiled for it, has no warpgroup products.
bool PrepareWarpgroupAttention();

// Head dimensions and sizes of the cache's blocks that the kernel takes.
bool WarpgroupAttentionSupports(int head_dim, int block_tokens);

cudaError_t LaunchWarpgroupAttention(const AttentionArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
