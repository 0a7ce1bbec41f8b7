// Causal grouped-query attention over the paged cache (Attention of backend.h) on tensor cores:
// every (query token, KV head, split of the context) is one block; of a token's splits, the block
// that ends last joins them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>

#include "runtime/backend/cuda/device/step_tables.h"

namespace moed::backend {

struct AttentionArguments {
  StepTablesView step;
  const float* q = nullptr;  // [T, query_heads * head_dim]
  const __nv_bfloat16* keys = nullptr;
  const __nv_bfloat16* values = nullptr;
  __nv_bfloat16* out = nullptr;  // [T, query_heads * head_dim]
  float* scratch = nullptr;      // AttentionScratchBytes(), if splits > 1
  int* arrived = nullptr;        // [kMaxSplitGroups] zeros, zeros again afterwards
  int tokens = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;  // a multiple of 8, at most 256
  int block_tokens = 0;
  int sliding_window = 0;
  float scale = 0;
  int splits = 1;
  bool prompts_apart = false;  // leave tokens to prompt_attention.h that it takes
};

// Tokens times groups of heads up to which the context is split.
inline constexpr int kMaxSplitGroups = 4096;

size_t AttentionScratchBytes(int tokens, int query_heads, int head_dim, int splits);

// More make joining their parts cost more than they gain.
inline constexpr int kSplitBlocksPerMultiprocessor = 2;

// How many splits keep the device busy for a step of `tokens` rows.
int AttentionSplits(int tokens, int query_heads, int kv_heads, int max_context,
                    int multiprocessors);

// False if the head dimension is not supported.
bool LaunchAttention(const AttentionArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
