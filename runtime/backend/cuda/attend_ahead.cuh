// A token's attention by blocks that wait for its projections: what they read before these are
// there, and what is left to do afterwards. Part of fused_attention.cu.
#pragma once

#include <cuda_bf16.h>

#include "runtime/backend/cuda/attend_split.cuh"
#include "runtime/backend/cuda/attention_exchange.cuh"
#include "runtime/backend/cuda/fused_attention.h"
#include "runtime/backend/cuda/lane_of_head.cuh"
#include "runtime/backend/cuda/prepare_head.cuh"
#include "runtime/backend/cuda/tagged_value.cuh"

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

// A warp's copy of a head, once it is there.
__device__ inline void CopyHead(const uint64_t* from, uint32_t launch, int head_dim, int lane,
                                float* to) {
  for (int i = lane; i < head_dim; i += 32) {
    while (!LoadTagged(from + i, launch, to + i)) {
    }
  }
}

// Where the cache holds the KV head's row of the token at `position`, in the range.
__device__ inline size_t NewRow(const PrepareQkvArguments& a, const HeadGroup& group,
                                KeyRange range, int position, const Ahead& ahead) {
  const int place = position - range.begin;
  return group.kv_head * a.head_dim +
         (place < kBlockKeys ? size_t(ahead.cache_rows[place]) * a.kv_heads * a.head_dim
                             : CacheOffset(a, 0, position));
}

// The group's queries, normed and rotated, into `q` [heads, head_dim]; with `writes` the new key
// and its value into the cache, from `new_row` on, and `ahead`. By a warp.
__device__ inline void PrepareAnyHeads(const PrepareQkvArguments& a, const HeadGroup& group,
                                       const Exchange& exchange, bool writes, size_t new_row,
                                       Ahead* ahead, float* q) {
  __shared__ float key[kMaxFusedHeadDim];
  __shared__ float value[kMaxFusedHeadDim];
  const int lane = threadIdx.x % 32;
  const int kv_offset = group.kv_head * a.head_dim;
  auto rotation = [&](int pair) { return ahead->rotations[pair]; };
  if (writes) {
    CopyHead(exchange.k + kv_offset, exchange.launch, a.head_dim, lane, key);
    CopyHead(exchange.v + kv_offset, exchange.launch, a.head_dim, lane, value);
  }
#pragma unroll 1
  for (int head = threadIdx.x / 32; head < group.heads; head += kAttendWarps) {
    float* const target = q + head * a.head_dim;
    CopyHead(exchange.q + (group.first_head + head) * a.head_dim, exchange.launch, a.head_dim, lane,
             target);
    __syncwarp();
    PrepareHead(a, a.q_norm == nullptr ? nullptr : ahead->q_norm, 1.0f, rotation, target);
  }
  if (!writes) return;
  __syncwarp();
  PrepareHead(a, a.k_norm == nullptr ? nullptr : ahead->k_norm, 1.0f, rotation, key);
  StoreKeyValue(a, key, value, ahead->key, ahead->value);
  StoreKeyValue(a, key, value, a.keys + new_row, a.values + new_row);
}

// The same of heads that rotate wholly: all that the warp reads is on its way at once.
template <int kDim>
__device__ void PrepareWholeHeads(const PrepareQkvArguments& a, const HeadGroup& group,
                                  const Exchange& exchange, bool writes, size_t new_row,
                                  Ahead* ahead, float* q) {
  static_assert(kAttendWarps >= kHeadGroup);
  const int head = threadIdx.x / 32;
  const int of_group = min(head, group.heads - 1);
  LaneOfHead<kDim> query;
  LaneOfHead<kDim> key;
  LaneOfHead<kDim> value;
  bool there = false;
  while (!there) {
    there = query.Load(exchange.q + (group.first_head + of_group) * kDim, exchange.launch);
    if (writes) {
      const bool has_key = key.Load(exchange.k + group.kv_head * kDim, exchange.launch);
      const bool has_value = value.Load(exchange.v + group.kv_head * kDim, exchange.launch);
      there = there && has_key && has_value;
    }
  }
  __syncwarp();
  query.NormAndClip(a.q_norm == nullptr ? nullptr : ahead->q_norm, a.norm_epsilon, a.clip);
  query.Rotate(ahead->rotations);
  if (head < group.heads) query.Store(q + head * kDim);
  if (!writes) return;
  key.NormAndClip(a.k_norm == nullptr ? nullptr : ahead->k_norm, a.norm_epsilon, a.clip);
  key.Rotate(ahead->rotations);
  key.Store(ahead->key);
  key.Store(a.keys + new_row);
  value.NormAndClip(nullptr, 0.0f, a.clip);
  value.Store(ahead->value);
  value.Store(a.values + new_row);
}

// All warps prepare the group's heads, and the last of them the new key and value, if these lie in
// the range.
template <int kChunks>
__device__ void PrepareHeads(const PrepareQkvArguments& a, const HeadGroup& group,
                             const Exchange& exchange, KeyRange range, int position, Ahead* ahead,
                             float* q) {
  constexpr int kDim = kChunks * 32;
  const bool writes =
      threadIdx.x / 32 == kAttendWarps - 1 && range.begin <= position && position < range.end;
  const size_t new_row = writes ? NewRow(a, group, range, position, *ahead) : 0;
  bool whole = false;
  if constexpr (kDim % 64 == 0) {
    whole = a.head_dim == kDim && RotatesWhole(a);
    if (whole) PrepareWholeHeads<kDim>(a, group, exchange, writes, new_row, ahead, q);
  }
  if (!whole) PrepareAnyHeads(a, group, exchange, writes, new_row, ahead, q);
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

// The block's split of the keys, into its part. `values`: [kAttendWarps, kHeadGroup, head_dim] of
// shared memory.
template <int kChunks>
__device__ void AttendSplit(const FusedAttentionArguments& a, const HeadGroup& group,
                            const Exchange& exchange, int split, KeyRange range, int position,
                            Ahead* ahead, float* values) {
  constexpr int kHalves = (kChunks + 1) / 2;
  __shared__ WarpResult results[kAttendWarps];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const AttentionArguments& attention = a.attention;
  PrepareHeads<kChunks>(a.prepare, group, exchange, range, position, ahead, values);
  const Queries<kChunks> q(values, group.heads, attention.head_dim, attention.scale, lane);
  Softmax<kHalves> softmax;
  const RangeRows rows = {{attention, 0, group.kv_head}, *ahead, range.begin, position};
  AttendWarp<kAttendWarps>(attention, range, rows, q, warp, lane, &softmax);
  __syncthreads();  // the queries are spent
  StoreWarp(softmax, attention.head_dim, warp, lane, results, values);
  __syncthreads();
  JoinWarps<kAttendWarps>(results, values, group.heads, attention.head_dim,
                          TaggedPart{exchange, group.first_head, attention.splits, split});
}

}  // namespace moed::backend
