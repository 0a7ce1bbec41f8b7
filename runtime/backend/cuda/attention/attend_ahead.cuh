// A token's attention by blocks that wait for its projections: what they read before these are
// there, and what is left to do afterwards. What fused_attention.cu and decode_attention.cu share.
//
// Projections: q, k and v of the token as projected; Query(head), Key(kv_head), Value(kv_head) have
// Load(LaneOfHead*), false if it is not there yet, and Copy(head_dim, to), which waits for it;
// LoadPair(i, pair) of head 0 reaches all heads.
#pragma once

#include <cuda_bf16.h>

#include "runtime/backend/cuda/attention/attend_split.cuh"
#include "runtime/backend/cuda/attention/lane_of_head.cuh"
#include "runtime/backend/cuda/attention/prepare_head.cuh"

namespace moed::backend {

inline constexpr int kAttendWarps = 8;
inline constexpr int kBlockKeys = kAttendWarps * kWarpKeys;  // that a block attends to at once
inline constexpr int kKnownRows = kAttendWarps * 32;         // a thread reads one key's place ahead
inline constexpr int kMaxFusedHeadDim = 128;
static_assert(kMaxFusedHeadDim <= kAttendWarps * 32, "and one column's weights");

// What a block needs of the step for its share of the attention, in shared memory.
struct Ahead {
  int cache_rows[kKnownRows];  // of the first keys of the range
  Rotation rotations[kMaxFusedHeadDim / 2];
  float q_norm[kMaxFusedHeadDim];
  float k_norm[kMaxFusedHeadDim];
  __nv_bfloat16 key[kMaxFusedHeadDim];  // the new ones, should they lie in the range
  __nv_bfloat16 value[kMaxFusedHeadDim];
};

// Whether q or k have a norm over all their heads.
__host__ __device__ inline bool NormsAllHeads(const PrepareQkvArguments& a) {
  return !a.norm_per_head && (a.q_norm != nullptr || a.k_norm != nullptr);
}

// Starts to bring a norm's weights of a few heads into L2.
__device__ inline void PrefetchWeights(const float* norm, int first, int count) {
  constexpr int kLineValues = 32;
  const int i = threadIdx.x * kLineValues;
  if (norm == nullptr || i >= count) return;
  asm volatile("prefetch.global.L2 [%0];" ::"l"(norm + first + i));
}

// Fills `ahead` but for the new key and value, and starts to bring the keys and values of the range
// into L2, while the first weights are on their way.
__device__ inline void LookAhead(const PrepareQkvArguments& prepare, const HeadGroup& group,
                                 const CachedRows& cached, KeyRange range, int position,
                                 Ahead* ahead) {
  constexpr int kLineValues = 64;
  const int i = threadIdx.x;
  const bool has_row = range.begin + i < range.end;
  // All on their way at once.
  const int row = has_row ? cached.Row(range.begin + i) : 0;
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
  if (NormsAllHeads(prepare)) {
    const int dim = prepare.head_dim;
    PrefetchWeights(prepare.q_norm, group.first_head * dim, group.heads * dim);
    PrefetchWeights(prepare.k_norm, group.kv_head * dim, dim);
  }
  if (!has_row) return;
  ahead->cache_rows[i] = row;
  for (int column = 0; column < prepare.head_dim; column += kLineValues) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(cached.Key(row) + column));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(cached.Value(row) + column));
  }
}

// The rows of a range of keys: the newest from shared memory, others from the cache.
struct RangeRows {
  CachedRows cached;
  const Ahead& ahead;
  int begin;
  int newest;

  __device__ int Row(int position) const {
    return position == newest ? kNewest : CacheRowOf(position);
  }
  __device__ const __nv_bfloat16* Key(int row) const {
    return row == kNewest ? ahead.key : cached.Key(row);
  }
  __device__ const __nv_bfloat16* Value(int row) const {
    return row == kNewest ? ahead.value : cached.Value(row);
  }
  // Where the cache holds it, the newest too.
  __device__ int CacheRowOf(int position) const {
    const int i = position - begin;
    return i < kKnownRows ? ahead.cache_rows[i] : cached.Row(position);
  }

 private:
  static constexpr int kNewest = -1;
};

// The sum over the thread's share of `count` values, those of `first` and the heads behind it, of
// their squares, once they are there.
template <class Head>
__device__ float SumOfSquares(const Head& first, int count) {
  constexpr int kAtOnce = 4;
  constexpr int kStep = 2 * kAttendWarps * 32;
  float squares = 0.0f;
  for (int begin = 2 * threadIdx.x; begin < count; begin += kAtOnce * kStep) {
    float2 pairs[kAtOnce] = {};
    for (bool there = false; !there;) {
      there = true;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int at = begin + i * kStep;
        const bool has = at >= count || first.LoadPair(at, &pairs[i]);
        there = there && has;
      }
    }
#pragma unroll
    for (const float2& pair : pairs) squares += pair.x * pair.x + pair.y * pair.y;
  }
  return squares;
}

// How queries and keys are normed.
struct HeadNorms {
  const PrepareQkvArguments& a;
  const Ahead& ahead;
  // Of norms over all heads.
  float q_scale = 1.0f;
  float k_scale = 1.0f;

  // All threads of the block call it.
  template <class Projections>
  __device__ HeadNorms(const PrepareQkvArguments& arguments, const Ahead& of_block,
                       const Projections& projections)
      : a(arguments), ahead(of_block) {
    if (!NormsAllHeads(a)) return;
    __shared__ float2 partial[kAttendWarps];
    const int q_width = a.query_heads * a.head_dim;
    const int k_width = a.kv_heads * a.head_dim;
    const float q_squares = WarpSum(SumOfSquares(projections.Query(0), q_width));
    const float k_squares = WarpSum(SumOfSquares(projections.Key(0), k_width));
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = make_float2(q_squares, k_squares);
    __syncthreads();
    float2 sums = make_float2(0.0f, 0.0f);
#pragma unroll
    for (const float2& part : partial) sums = make_float2(sums.x + part.x, sums.y + part.y);
    q_scale = rsqrtf(sums.x / q_width + a.norm_epsilon);
    k_scale = rsqrtf(sums.y / k_width + a.norm_epsilon);
  }

  // The weights of a head's norm; null: it has none.
  __device__ const float* OfQuery(int head) const {
    if (a.q_norm == nullptr) return nullptr;
    return a.norm_per_head ? ahead.q_norm : a.q_norm + head * a.head_dim;
  }
  __device__ const float* OfKey(int kv_head) const {
    if (a.k_norm == nullptr) return nullptr;
    return a.norm_per_head ? ahead.k_norm : a.k_norm + kv_head * a.head_dim;
  }
  template <int kDim>
  __device__ void Apply(const float* weight, float scale, LaneOfHead<kDim>* head) const {
    if (a.norm_per_head) {
      head->NormAndClip(weight, a.norm_epsilon, a.clip);
    } else {
      head->ScaleAndClip(weight, scale, a.clip);
    }
  }
};

// The group's queries, normed and rotated, into `q` [heads, head_dim]; with `writes` the new key
// and its value into the cache, from `new_row` on, and `ahead`. By a warp.
template <class Projections>
__device__ void PrepareAnyHeads(const PrepareQkvArguments& a, const HeadGroup& group,
                                const HeadNorms& norms, const Projections& projections, bool writes,
                                size_t new_row, Ahead* ahead, float* q) {
  __shared__ float key[kMaxFusedHeadDim];
  __shared__ float value[kMaxFusedHeadDim];
  auto rotation = [&](int pair) { return ahead->rotations[pair]; };
  if (writes) {
    projections.Key(group.kv_head).Copy(a.head_dim, key);
    projections.Value(group.kv_head).Copy(a.head_dim, value);
  }
#pragma unroll 1
  for (int head = threadIdx.x / 32; head < group.heads; head += kAttendWarps) {
    float* const target = q + head * a.head_dim;
    projections.Query(group.first_head + head).Copy(a.head_dim, target);
    __syncwarp();
    PrepareHead(a, norms.OfQuery(group.first_head + head), norms.q_scale, rotation, target);
  }
  if (!writes) return;
  __syncwarp();
  PrepareHead(a, norms.OfKey(group.kv_head), norms.k_scale, rotation, key);
  StoreKeyValue(a, key, value, ahead->key, ahead->value);
  StoreKeyValue(a, key, value, a.keys + new_row, a.values + new_row);
}

// The same of heads that rotate wholly: all that the warp reads is on its way at once.
template <int kDim, class Projections>
__device__ void PrepareWholeHeads(const PrepareQkvArguments& a, const HeadGroup& group,
                                  const HeadNorms& norms, const Projections& projections,
                                  bool writes, size_t new_row, Ahead* ahead, float* q) {
  static_assert(kAttendWarps >= kHeadGroup);
  const int head = threadIdx.x / 32;
  const int of_group = min(head, group.heads - 1);
  LaneOfHead<kDim> query;
  LaneOfHead<kDim> key;
  LaneOfHead<kDim> value;
  bool there = false;
  while (!there) {
    there = projections.Query(group.first_head + of_group).Load(&query);
    if (writes) {
      const bool has_key = projections.Key(group.kv_head).Load(&key);
      const bool has_value = projections.Value(group.kv_head).Load(&value);
      there = there && has_key && has_value;
    }
  }
  __syncwarp();
  norms.Apply(norms.OfQuery(group.first_head + of_group), norms.q_scale, &query);
  query.Rotate(ahead->rotations);
  if (head < group.heads) query.Store(q + head * kDim);
  if (!writes) return;
  norms.Apply(norms.OfKey(group.kv_head), norms.k_scale, &key);
  key.Rotate(ahead->rotations);
  key.Store(ahead->key);
  key.Store(a.keys + new_row);
  value.NormAndClip(nullptr, 0.0f, a.clip);
  value.Store(ahead->value);
  value.Store(a.values + new_row);
}

// All warps prepare the group's heads, and the last of them the new key and value, if these lie in
// the range.
template <int kChunks, class Projections>
__device__ void PrepareHeads(const PrepareQkvArguments& a, const HeadGroup& group,
                             const Projections& projections, KeyRange range, const RangeRows& rows,
                             Ahead* ahead, float* q) {
  constexpr int kDim = kChunks * 32;
  const bool writes =
      threadIdx.x / 32 == kAttendWarps - 1 && range.begin <= rows.newest && rows.newest < range.end;
  const size_t new_row = writes ? rows.cached.Offset(rows.CacheRowOf(rows.newest)) : 0;
  const HeadNorms norms(a, *ahead, projections);
  bool whole = false;
  if constexpr (kDim % 64 == 0) {
    whole = a.head_dim == kDim && RotatesWhole(a);
    if (whole) PrepareWholeHeads<kDim>(a, group, norms, projections, writes, new_row, ahead, q);
  }
  if (!whole) PrepareAnyHeads(a, group, norms, projections, writes, new_row, ahead, q);
  __syncthreads();
}

// The block's range of the keys of the token at `position`, into `part` (JoinWarps). `values`:
// [kAttendWarps, kHeadGroup, head_dim] of shared memory.
template <int kChunks, class Projections, class Part>
__device__ void AttendRange(const PrepareQkvArguments& prepare, const CachedRows& cached,
                            const HeadGroup& group, const Projections& projections, KeyRange range,
                            int position, Ahead* ahead, float* values, const Part& part) {
  constexpr int kHalves = (kChunks + 1) / 2;
  __shared__ WarpResult results[kAttendWarps];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const AttentionArguments& a = cached.a;
  const RangeRows rows = {cached, *ahead, range.begin, position};
  PrepareHeads<kChunks>(prepare, group, projections, range, rows, ahead, values);
  const Queries<kChunks> q(values, group.heads, a.head_dim, a.scale, lane);
  Softmax<kHalves> softmax;
  AttendWarp<kAttendWarps>(a, range, rows, q, warp, lane, &softmax);
  __syncthreads();  // the queries are spent
  StoreWarp(softmax, a.head_dim, warp, lane, results, values);
  __syncthreads();
  JoinWarps<kAttendWarps>(results, values, group.heads, a.head_dim, part);
}

}  // namespace moed::backend
