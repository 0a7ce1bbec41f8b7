// A token's attention by blocks that wait for its projections: what they read before these are
// there, and what is left to do afterwards. Part of fused_attention.cu.
#pragma once

#include <cuda_bf16.h>

#include "runtime/backend/cuda/attend_split.cuh"
#include "runtime/backend/cuda/fused_attention.h"
#include "runtime/backend/cuda/prepare_head.cuh"

namespace moed::backend {

inline constexpr int kAttendWarps = 8;
inline constexpr int kBlockKeys = kAttendWarps * kWarpKeys;  // that a block attends to at once
inline constexpr int kMaxFusedHeadDim = 128;
static_assert(kBlockKeys <= kAttendWarps * 32 && kMaxFusedHeadDim <= kAttendWarps * 32,
              "each thread reads one key's place and one column's weights ahead");

// What a block needs of the step for its share of the attention, in shared memory.
struct Ahead {
  int cache_rows[kBlockKeys];  // of the first keys of the range
  Rotation rotations[kMaxFusedHeadDim / 2];
  float q_norm[kMaxFusedHeadDim];
  float k_norm[kMaxFusedHeadDim];
  __nv_bfloat16 key[kMaxFusedHeadDim];  // the new ones, should they lie in the range
  __nv_bfloat16 value[kMaxFusedHeadDim];
};

// Fills `ahead` but for the new key and value, and starts to bring the keys and values of the range
// into L2, while the first weights are on their way.
__device__ inline void LookAhead(const FusedAttentionArguments& a, int kv_head, KeyRange range,
                                 int position, Ahead* ahead) {
  constexpr int kLineValues = 64;
  const PrepareQkvArguments& prepare = a.prepare;
  const int i = threadIdx.x;
  const bool has_row = i < kBlockKeys && range.begin + i < range.end;
  // All on their way at once.
  const int row = has_row ? CacheRow(a.attention, 0, range.begin + i) : 0;
  const bool has_pair = i < prepare.rotary_dims / 2;
  const bool has_column = i < prepare.head_dim;
  const float frequency = has_pair ? prepare.inverse_frequencies[i] : 0.0f;
  const float q_norm = has_column && prepare.q_norm != nullptr ? prepare.q_norm[i] : 0.0f;
  const float k_norm = has_column && prepare.k_norm != nullptr ? prepare.k_norm[i] : 0.0f;
  if (has_pair) ahead->rotations[i] = RotationOf(prepare, position, frequency);
  if (has_column) {
    ahead->q_norm[i] = q_norm;
    ahead->k_norm[i] = k_norm;
  }
  if (!has_row) return;
  ahead->cache_rows[i] = row;
  const size_t offset = CachedRows{a.attention, 0, kv_head}.Offset(row);
  for (int column = 0; column < prepare.head_dim; column += kLineValues) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(a.attention.keys + offset + column));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(a.attention.values + offset + column));
  }
}

// A warp's copy of a head.
__device__ inline void CopyHead(const float* from, int head_dim, int lane, float* to) {
#pragma unroll
  for (int i = 0; i < kMaxFusedHeadDim; i += 32) {
    if (i + lane < head_dim) to[i + lane] = from[i + lane];
  }
}

// The group's queries, normed and rotated, into `q` [heads, head_dim]; the new key and its value
// into the cache and `ahead`, if they lie in the range.
__device__ inline void PrepareHeads(const PrepareQkvArguments& a, const HeadGroup& group,
                                    KeyRange range, int position, Ahead* ahead, float* q) {
  __shared__ float key[kMaxFusedHeadDim];
  __shared__ float value[kMaxFusedHeadDim];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const bool writes = warp == kAttendWarps - 1 && range.begin <= position && position < range.end;
  const int kv_offset = group.kv_head * a.head_dim;
  auto rotation = [&](int pair) { return ahead->rotations[pair]; };
  if (writes) {
    CopyHead(a.k + kv_offset, a.head_dim, lane, key);
    CopyHead(a.v + kv_offset, a.head_dim, lane, value);
  }
#pragma unroll 1
  for (int head = warp; head < group.heads; head += kAttendWarps) {
    float* const target = q + head * a.head_dim;
    CopyHead(a.q + (group.first_head + head) * a.head_dim, a.head_dim, lane, target);
    __syncwarp();
    PrepareHead(a, a.q_norm == nullptr ? nullptr : ahead->q_norm, 1.0f, rotation, target);
  }
  if (writes) {
    __syncwarp();
    PrepareHead(a, a.k_norm == nullptr ? nullptr : ahead->k_norm, 1.0f, rotation, key);
    StoreKeyValue(a, key, value, ahead->key, ahead->value);
    const int place = position - range.begin;
    const size_t offset =
        kv_offset + (place < kBlockKeys ? size_t(ahead->cache_rows[place]) * a.kv_heads * a.head_dim
                                        : CacheOffset(a, 0, position));
    StoreKeyValue(a, key, value, a.keys + offset, a.values + offset);
  }
  __syncthreads();
}

// The rows of a range of keys: the newest from shared memory, others from the cache.
struct RangeRows {
  CachedRows cached;
  const Ahead& ahead;
  int begin;
  int newest;

  __device__ int Row(int position) const {
    if (position == newest) return kNewest;
    const int i = position - begin;
    return i < kBlockKeys ? ahead.cache_rows[i] : cached.Row(position);
  }
  __device__ const __nv_bfloat16* Key(int row) const {
    return row == kNewest ? ahead.key : cached.Key(row);
  }
  __device__ const __nv_bfloat16* Value(int row) const {
    return row == kNewest ? ahead.value : cached.Value(row);
  }

 private:
  static constexpr int kNewest = -1;
};

// The block's split of the keys, into its part of the scratch memory. `values`: [kAttendWarps,
// kHeadGroup, head_dim] of shared memory.
template <int kChunks>
__device__ void AttendSplit(const FusedAttentionArguments& a, const HeadGroup& group, int split,
                            KeyRange range, int position, Ahead* ahead, float* values) {
  constexpr int kHalves = (kChunks + 1) / 2;
  __shared__ WarpResult results[kAttendWarps];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const AttentionArguments& attention = a.attention;
  PrepareHeads(a.prepare, group, range, position, ahead, values);
  const Queries<kChunks> q(values, group.heads, attention.head_dim, attention.scale, lane);
  Softmax<kHalves> softmax;
  const RangeRows rows = {{attention, 0, group.kv_head}, *ahead, range.begin, position};
  AttendWarp<kAttendWarps>(attention, range, rows, q, warp, lane, &softmax);
  __syncthreads();  // the queries are spent
  StoreWarp(softmax, attention.head_dim, warp, lane, results, values);
  __syncthreads();
  JoinWarps<kAttendWarps>(attention, results, values, group.first_head, group.heads, split);
}

}  // namespace moed::backend
