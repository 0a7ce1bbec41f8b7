// Between the q, k, v projections and attention: norms, clipping, rotary embedding, and the write
// of keys and values into the paged cache, one kernel for all rows of a step (PrepareQkv of
// backend.h).
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "runtime/backend/cuda/device/step_tables.h"

namespace moed::backend {

struct PrepareQkvArguments {
  StepTablesView step;
  float* q = nullptr;  // [T, query_heads * head_dim]
  float* k = nullptr;  // [T, kv_heads * head_dim]
  float* v = nullptr;
  const float* q_norm = nullptr;  // null: no norm
  const float* k_norm = nullptr;
  const float* inverse_frequencies = nullptr;  // [rotary_dims / 2], device memory
  __nv_bfloat16* keys = nullptr;               // [blocks, block_tokens, kv_heads * head_dim]
  __nv_bfloat16* values = nullptr;
  int tokens = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int rotary_dims = 0;
  int block_tokens = 0;
  bool norm_per_head = true;
  bool interleaved = false;
  float norm_epsilon = 0;
  float clip = 0;
  float attention_factor = 1;
};

void LaunchPrepareQkv(const PrepareQkvArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
