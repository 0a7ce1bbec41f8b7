// What the blocks of a token's attention leave one another as tagged values: its projections, and
// the parts into which its splits make them. Part of fused_attention.cu.
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>

#include "runtime/backend/cuda/attention/attend_split.cuh"
#include "runtime/backend/cuda/attention/lane_of_head.cuh"
#include "runtime/backend/cuda/primitives/tagged_value.cuh"

namespace moed::backend {

inline constexpr size_t kExchangeWordBytes = 128;  // apart

__host__ __device__ constexpr size_t TaggedPartWords(int head_dim) { return head_dim + 2; }

// A head of q, k or v.
struct TaggedHead {
  const uint64_t* values;
  uint32_t launch;

  template <int kDim>
  __device__ bool Load(LaneOfHead<kDim>* lane) const {
    return lane->Load(values, launch);
  }
  // Values i and i + 1, i even; of this head and those behind it.
  __device__ bool LoadPair(int i, float2* pair) const {
    return LoadTagged(values + i, launch, pair);
  }
  // By a warp, once it is there.
  __device__ void Copy(int head_dim, float* to) const {
    for (int i = threadIdx.x % 32; i < head_dim; i += 32) {
      while (!LoadTagged(values + i, launch, to + i)) {
      }
    }
  }
};

// Of one launch, in device memory.
struct Exchange {
  uint64_t* q;      // [query heads, head_dim], as projected; k and v follow
  uint64_t* k;      // [KV heads, head_dim]
  uint64_t* v;      // likewise
  uint64_t* parts;  // of splits: PartOf()
  int head_dim;
  uint32_t launch;

  // The token's projections (attend_ahead.cuh).
  __device__ TaggedHead Query(int head) const { return {q + head * head_dim, launch}; }
  __device__ TaggedHead Key(int kv_head) const { return {k + kv_head * head_dim, launch}; }
  __device__ TaggedHead Value(int kv_head) const { return {v + kv_head * head_dim, launch}; }
  // Maximum, sum, then the values.
  __device__ uint64_t* PartOf(int head, int splits, int split) const {
    return parts + (size_t(head) * splits + split) * TaggedPartWords(head_dim);
  }
};

// What a launch's memory holds, zeros before the first: the barrier of those that read the
// residual, how many launches ended, what the blocks of this one leave one another.
struct ExchangeMemory {
  std::byte* base;

  __device__ uint32_t* read() const { return reinterpret_cast<uint32_t*>(base); }
  __device__ uint32_t* launches() const {
    return reinterpret_cast<uint32_t*>(base + kExchangeWordBytes);
  }
  __device__ Exchange Values(const AttentionArguments& a, uint32_t launch) const {
    auto* const q = reinterpret_cast<uint64_t*>(base + 2 * kExchangeWordBytes);
    uint64_t* const k = q + a.query_heads * a.head_dim;
    uint64_t* const v = k + a.kv_heads * a.head_dim;
    return {q, k, v, v + a.kv_heads * a.head_dim, a.head_dim, launch};
  }
};

// A part of the heads from `first_head` on.
struct TaggedPart {
  const Exchange& exchange;
  int first_head;
  int splits;
  int split;

  __device__ void SetWeights(int head, float maximum, float sum) const {
    uint64_t* const part = exchange.PartOf(first_head + head, splits, split);
    StoreTagged(part, maximum, exchange.launch);
    StoreTagged(part + 1, sum, exchange.launch);
  }
  __device__ void SetValue(int head, int column, float value, float /*inverse_sum*/) const {
    StoreTagged(exchange.PartOf(first_head + head, splits, split) + 2 + column, value,
                exchange.launch);
  }
};

// Adds a head's parts [first, first + kBatch) of `splits` for four columns, once they are there.
template <int kBatch>
__device__ void JoinTaggedBatch(const Exchange& exchange, int head, int column, int first,
                                int splits, JoinedQuad* joined) {
  float2 weights[kBatch];  // maximum and sum
  float2 low[kBatch];
  float2 high[kBatch];
  const auto part = [&](int i) {
    return exchange.PartOf(head, splits, min(first + i, splits - 1));
  };
  // These are waited for alone, since all blocks do, and the values come right behind them.
  for (bool there = false; !there;) {
    there = true;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const bool has = LoadTagged(part(i), exchange.launch, &weights[i]);
      there = there && has;
    }
  }
  for (bool there = false; !there;) {
    there = true;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const bool has_low = LoadTagged(part(i) + 2 + column, exchange.launch, &low[i]);
      const bool has_high = LoadTagged(part(i) + 4 + column, exchange.launch, &high[i]);
      there = there && has_low && has_high;
    }
  }
  float4 values[kBatch];
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    if (first + i >= splits) weights[i].y = 0.0f;
    values[i] = make_float4(low[i].x, low[i].y, high[i].x, high[i].y);
  }
  joined->AddParts(weights, values);
}

// Adds the parts of all splits of `heads` heads into `out`, [heads, head_dim]; all threads of the
// block call it.
template <int kWarps>
__device__ void JoinTaggedSplits(const Exchange& exchange, int first_head, int heads, int splits,
                                 __nv_bfloat16* out) {
  constexpr int kBatch = 4;
  const int quads = exchange.head_dim / 4;
  for (int i = threadIdx.x; i < heads * quads; i += kWarps * 32) {
    JoinedQuad joined;
    for (int first = 0; first < splits; first += kBatch) {
      JoinTaggedBatch<kBatch>(exchange, first_head + i / quads, i % quads * 4, first, splits,
                              &joined);
    }
    const float scale = 1.0f / joined.sum;
    auto* target = reinterpret_cast<__nv_bfloat162*>(out + i * 4);
    target[0] = __floats2bfloat162_rn(joined.value.x * scale, joined.value.y * scale);
    target[1] = __floats2bfloat162_rn(joined.value.z * scale, joined.value.w * scale);
  }
}

}  // namespace moed::backend
