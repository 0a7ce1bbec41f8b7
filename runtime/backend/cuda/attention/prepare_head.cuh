// Norm, clipping and rotary embedding of one head of q or k, by one warp; and its way into the
// paged cache. What prepare_qkv.cu and attend_ahead.cuh share.
#pragma once

#include <cuda_bf16.h>

#include "runtime/backend/cuda/attention/prepare_qkv.h"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {

__device__ inline float Clip(float value, float limit) {
  return limit > 0.0f ? fminf(fmaxf(value, -limit), limit) : value;
}

// The rotation of a pair.
struct Rotation {
  float cosine;
  float sine;
};

__device__ inline Rotation RotationOf(const PrepareQkvArguments& a, int position,
                                      float inverse_frequency) {
  Rotation rotation;
  sincosf(static_cast<float>(position) * inverse_frequency, &rotation.sine, &rotation.cosine);
  rotation.sine *= a.attention_factor;
  rotation.cosine *= a.attention_factor;
  return rotation;
}

// Norm, clip and rotation of one head by one warp, in place. `weight`: of the norm for this head,
// or null; `scale`: of a norm over all heads. rotation_of(j): of pair j.
template <class RotationOfPair>
__device__ void PrepareHead(const PrepareQkvArguments& a, const float* weight, float scale,
                            const RotationOfPair& rotation_of, float* x) {
  const int lane = threadIdx.x % 32;
  if (weight != nullptr && a.norm_per_head) {
    float squares = 0.0f;
    for (int i = lane; i < a.head_dim; i += 32) squares += x[i] * x[i];
    scale = rsqrtf(WarpSum(squares) / a.head_dim + a.norm_epsilon);
  }
  for (int i = lane; i < a.head_dim; i += 32) {
    const float normed = weight == nullptr ? x[i] : x[i] * scale * weight[i];
    x[i] = Clip(normed, a.clip);
  }
  __syncwarp();
  const int pairs = a.rotary_dims / 2;
  for (int j = lane; j < pairs; j += 32) {
    const Rotation rotation = rotation_of(j);
    float& first = x[a.interleaved ? 2 * j : j];
    float& second = x[a.interleaved ? 2 * j + 1 : j + pairs];
    const float rotated = first * rotation.cosine - second * rotation.sine;
    second = second * rotation.cosine + first * rotation.sine;
    first = rotated;
  }
  __syncwarp();
}

// Where the cache holds the values of `token`, which is at `position`.
__device__ inline size_t CacheOffset(const PrepareQkvArguments& a, int token, int position) {
  const int block = a.step.kv_blocks[a.step.block_begin[token] + position / a.block_tokens];
  return (size_t(block) * a.block_tokens + position % a.block_tokens) * a.kv_heads * a.head_dim;
}

// Writes a prepared key head and its values as they were projected, to `keys` and `values`.
__device__ inline void StoreKeyValue(const PrepareQkvArguments& a, const float* k, const float* v,
                                     __nv_bfloat16* keys, __nv_bfloat16* values) {
  for (int i = threadIdx.x % 32; i < a.head_dim; i += 32) {
    keys[i] = __float2bfloat16(k[i]);
    values[i] = __float2bfloat16(Clip(v[i], a.clip));
  }
}

}  // namespace moed::backend
