// Attention of prompts: what attention.h computes, for tokens that follow one another in a
// sequence. A block takes up to 16 of them with 8 query heads of a KV head, so that keys and values
// are read once for 128 rows, as in flash attention; attention.h reads them once a token.
#pragma once

#include <cuda_runtime.h>

#include "runtime/backend/cuda/attention/attention.h"

namespace moed::backend {

// Head dimensions that the kernel is built for.
bool PromptAttentionSupports(int head_dim);

// Raises the kernels' shared-memory limit; once per device, before the first launch.
cudaError_t PreparePromptAttention();

// The rows of tokens that stand in a run of at least kLeastPromptTokens (step_layout.h); others
// are left alone, and LaunchAttention with prompts_apart computes them.
cudaError_t LaunchPromptAttention(const AttentionArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
