// One split of a token's context, for up to eight query heads of one KV head, by one block; and how
// the parts of warps and splits add up. What attention.cu and attend_ahead.cuh share.
#pragma once

#include <cuda_bf16.h>

#include <cmath>

#include "runtime/backend/cuda/attention/attention.h"
#include "runtime/backend/cuda/attention/attention_tiles.cuh"

namespace moed::backend {

inline constexpr int kHeadGroup = 8;  // query heads of one KV head that a block handles together
inline constexpr int kTileKeys = 8;
inline constexpr int kWarpKeys = 2 * kTileKeys;  // of one pass
inline constexpr int kMaxSplits = 64;

// Where the block's keys lie: positions [begin, end) of the token's sequence.
struct KeyRange {
  int begin;
  int end;
};

__device__ inline KeyRange RangeOf(const AttentionArguments& a, int position, int split) {
  const int visible_end = position + 1;
  const int visible_begin = a.sliding_window > 0 ? max(0, visible_end - a.sliding_window) : 0;
  const int length = visible_end - visible_begin;
  const int per_split = (length + a.splits - 1) / a.splits;
  const int begin = visible_begin + split * per_split;
  return {begin, min(visible_end, begin + per_split)};
}

__device__ inline int CacheRow(const AttentionArguments& a, int token, int position) {
  const int block = a.step.kv_blocks[a.step.block_begin[token] + position / a.block_tokens];
  return block * a.block_tokens + position % a.block_tokens;
}

// The paged rows of a KV head: where the cache holds a position, and what lies there.
struct CachedRows {
  const AttentionArguments& a;
  int token;
  int kv_head;

  __device__ int Row(int position) const { return CacheRow(a, token, position); }
  __device__ size_t Offset(int row) const {
    return (size_t(row) * a.kv_heads + kv_head) * a.head_dim;
  }
  __device__ const __nv_bfloat16* Key(int row) const { return a.keys + Offset(row); }
  __device__ const __nv_bfloat16* Value(int row) const { return a.values + Offset(row); }
};

// One warp's results, of a block's in shared memory; [warp][head][head_dim] values after them.
struct WarpResult {
  float maximum[kHeadGroup];
  float sum[kHeadGroup];
};

// Parts of a softmax over the same values, each scaled by exp(-maximum) of its own: what to scale
// them by so that they add up, and the inverse of the whole sum. One warp calls it; parts without a
// key have a sum of 0.
__device__ inline float JoinFactors(const float* maxima, const float* sums, int parts, int stride,
                                    float* factors, int lane, float* maximum, float* sum) {
  *maximum = -INFINITY;
  for (int i = lane; i < parts; i += 32) *maximum = fmaxf(*maximum, maxima[i * stride]);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    *maximum = fmaxf(*maximum, __shfl_xor_sync(0xffffffffu, *maximum, offset));
  }
  *sum = 0.0f;
  for (int i = lane; i < parts; i += 32) {
    const float part = sums[i * stride];
    const float factor = part == 0.0f ? 0.0f : __expf(maxima[i * stride] - *maximum);
    factors[i] = factor;
    *sum += factor * part;
  }
  *sum = WarpSum(*sum);
  return 1.0f / *sum;
}

// A warp's share of the keys: every kWarps-th run of kWarpKeys. `rows`: as CachedRows.
template <int kWarps, int kChunks, int kHalves, class Rows>
__device__ void AttendWarp(const AttentionArguments& a, KeyRange range, const Rows& rows,
                           const Queries<kChunks>& q, int warp, int lane,
                           Softmax<kHalves>* softmax) {
  const int g = lane / 4;
  const int t = lane % 4;
  for (int base = range.begin + warp * kWarpKeys; base < range.end; base += kWarps * kWarpKeys) {
    uint4 key[2][kChunks];
    uint4 even[2][kHalves];
    uint4 odd[2][kHalves];
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const int row = rows.Row(min(base + tile * kTileKeys + g, range.end - 1));
      const __nv_bfloat16* const key_row = rows.Key(row);
      const __nv_bfloat16* const even_row = rows.Value(__shfl_sync(0xffffffffu, row, t * 8));
      const __nv_bfloat16* const odd_row = rows.Value(__shfl_sync(0xffffffffu, row, t * 8 + 4));
#pragma unroll
      for (int c = 0; c < kChunks; ++c) key[tile][c] = Load16(key_row, c * 32 + t * 8, a.head_dim);
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        even[tile][h] = Load16(even_row, h * 64 + g * 8, a.head_dim);
        odd[tile][h] = Load16(odd_row, h * 64 + g * 8, a.head_dim);
      }
    }
    float2 scores[2];
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const int first = base + tile * kTileKeys + 2 * t;
      const float2 score = Score<kChunks>(q, key[tile]);
      scores[tile].x = first < range.end ? score.x : -INFINITY;
      scores[tile].y = first + 1 < range.end ? score.y : -INFINITY;
    }
    softmax->Rescale(scores, lane);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) softmax->Add(scores[tile], even[tile], odd[tile]);
  }
}

template <int kHalves>
__device__ void StoreWarp(Softmax<kHalves>& softmax, int head_dim, int warp, int lane,
                          WarpResult* results, float* values) {
  float sum = softmax.sum;
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  if (lane % 4 == 0) {
    results[warp].maximum[lane / 4] = softmax.maximum;
    results[warp].sum[lane / 4] = sum;
  }
#pragma unroll
  for (int m = 0; m < kHalves * 4; ++m) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int column = Softmax<kHalves>::Column(lane, m, r);
      const int head = 2 * (lane % 4) + r % 2;
      if (column < head_dim) {
        values[(warp * kHeadGroup + head) * head_dim + column] = softmax.value[m][r];
      }
    }
  }
}

// Of a split: per head the maximum, the sum, two words of padding, then the values.
__device__ inline size_t PartStride(int head_dim) { return head_dim + 4; }

// Joins the results of the block's warps for `heads` heads: part.SetWeights(head, maximum, sum) by
// one thread each, part.SetValue(head, column, value, 1 / sum) for the values.
template <int kWarps, class Part>
__device__ void JoinWarps(const WarpResult* results, const float* values, int heads, int head_dim,
                          const Part& part) {
  __shared__ float factors[kHeadGroup][kWarps];
  __shared__ float inverse_sum[kHeadGroup];
  const int lane = threadIdx.x % 32;
  for (int head = threadIdx.x / 32; head < heads; head += kWarps) {
    float maximum;
    float sum;
    const float inverse =
        JoinFactors(&results[0].maximum[head], &results[0].sum[head], kWarps,
                    sizeof(WarpResult) / sizeof(float), factors[head], lane, &maximum, &sum);
    if (lane > 0) continue;
    inverse_sum[head] = inverse;
    part.SetWeights(head, maximum, sum);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < heads * head_dim; i += kWarps * 32) {
    const int head = i / head_dim;
    float value = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      value += factors[head][w] * values[w * kHeadGroup * head_dim + i];
    }
    part.SetValue(head, i % head_dim, value, inverse_sum[head]);
  }
}

// Part `split` of the heads from `first_row` on, in scratch memory, or, with a single split, the
// output.
struct ScratchPart {
  const AttentionArguments& a;
  size_t first_row;
  int split;

  __device__ void SetWeights(int head, float maximum, float sum) const {
    if (a.splits == 1) return;
    float* const part = Of(head);
    part[0] = maximum;
    part[1] = sum;
  }
  __device__ void SetValue(int head, int column, float value, float inverse_sum) const {
    if (a.splits == 1) {
      a.out[(first_row + head) * a.head_dim + column] = __float2bfloat16(value * inverse_sum);
    } else {
      Of(head)[4 + column] = value;
    }
  }

 private:
  __device__ float* Of(int head) const {
    return a.scratch + ((first_row + head) * a.splits + split) * PartStride(a.head_dim);
  }
};

// The parts of a column quad of one head, added up one batch of splits after the other.
struct JoinedQuad {
  float maximum = -INFINITY;
  float sum = 0.0f;
  float4 value = make_float4(0, 0, 0, 0);

  // `weights`: maximum and sum of each part; one without a key has a sum of 0.
  template <int kParts>
  __device__ void AddParts(const float2 (&weights)[kParts], const float4 (&values)[kParts]) {
    float highest = maximum;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if (weights[i].y != 0.0f) highest = fmaxf(highest, weights[i].x);
    }
    if (sum != 0.0f) Scale(__expf(maximum - highest));
    maximum = highest;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if (weights[i].y != 0.0f) Add(__expf(weights[i].x - highest), weights[i].y, values[i]);
    }
  }

 private:
  __device__ void Scale(float factor) {
    sum *= factor;
    value = make_float4(value.x * factor, value.y * factor, value.z * factor, value.w * factor);
  }
  __device__ void Add(float factor, float part_sum, const float4& part) {
    sum = fmaf(factor, part_sum, sum);
    value.x = fmaf(factor, part.x, value.x);
    value.y = fmaf(factor, part.y, value.y);
    value.z = fmaf(factor, part.z, value.z);
    value.w = fmaf(factor, part.w, value.w);
  }
};

// Adds parts [first, first + kBatch) of `splits`, `stride` apart: all are read at once. A part
// without a key has a sum of 0.
template <int kBatch>
__device__ void JoinBatch(const float* parts, size_t stride, int column, int first, int splits,
                          JoinedQuad* joined) {
  float2 head[kBatch];  // maximum and sum
  float4 value[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    const float* part = parts + min(first + i, splits - 1) * stride;
    head[i] = *reinterpret_cast<const float2*>(part);
    value[i] = *reinterpret_cast<const float4*>(part + 4 + column);
    if (first + i >= splits) head[i].y = 0.0f;
  }
  joined->AddParts(head, value);
}

// Adds the parts of all splits into `out`, [heads, head_dim].
template <int kWarps>
__device__ void JoinSplits(const AttentionArguments& a, size_t first_row, int heads,
                           __nv_bfloat16* out) {
  constexpr int kBatch = 8;
  const size_t stride = PartStride(a.head_dim);
  const float* parts = a.scratch + first_row * a.splits * stride;
  // Four columns a thread: head_dim is a multiple of 8.
  const int quads = a.head_dim / 4;
  for (int i = threadIdx.x; i < heads * quads; i += kWarps * 32) {
    const float* head = parts + size_t(i / quads) * a.splits * stride;
    JoinedQuad joined;
    for (int first = 0; first < a.splits; first += kBatch) {
      JoinBatch<kBatch>(head, stride, i % quads * 4, first, a.splits, &joined);
    }
    const float scale = 1.0f / joined.sum;
    auto* target = reinterpret_cast<__nv_bfloat162*>(out + i * 4);
    target[0] = __floats2bfloat162_rn(joined.value.x * scale, joined.value.y * scale);
    target[1] = __floats2bfloat162_rn(joined.value.z * scale, joined.value.w * scale);
  }
}

// Where a group of query heads stands.
struct HeadGroup {
  int kv_head;
  int first_head;
  int heads;

  __device__ HeadGroup(const AttentionArguments& a, int index) {
    const int heads_per_kv = a.query_heads / a.kv_heads;
    const int groups = (heads_per_kv + kHeadGroup - 1) / kHeadGroup;
    kv_head = index / groups;
    first_head = kv_head * heads_per_kv + index % groups * kHeadGroup;
    heads = min(kHeadGroup, (kv_head + 1) * heads_per_kv - first_head);
  }
};

inline int HeadGroups(int query_heads, int kv_heads) {
  return kv_heads * ((query_heads / kv_heads + kHeadGroup - 1) / kHeadGroup);
}

}  // namespace moed::backend
