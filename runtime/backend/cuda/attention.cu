#include <algorithm>
#include <cmath>

#include "runtime/backend/cuda/attention.h"
#include "runtime/backend/cuda/tensor_core.cuh"

namespace moed::backend {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kGroup = 8;  // query heads of one KV head that a block handles together
constexpr int kMinSplitTokens = 128;

// A running softmax over one head: values are scaled by exp(-maximum).
struct Softmax {
  float maximum = -INFINITY;
  float sum = 0.0f;
};

// Where the block's keys lie: positions [begin, end) of the token's sequence.
struct KeyRange {
  int begin;
  int end;
};

__device__ KeyRange RangeOf(const AttentionArguments& a, int position, int split) {
  const int visible_end = position + 1;
  const int visible_begin = a.sliding_window > 0 ? max(0, visible_end - a.sliding_window) : 0;
  const int length = visible_end - visible_begin;
  const int per_split = (length + a.splits - 1) / a.splits;
  const int begin = visible_begin + split * per_split;
  return {begin, min(visible_end, begin + per_split)};
}

__device__ size_t CacheRow(const AttentionArguments& a, int token, int position) {
  const int block = a.step.kv_blocks[a.step.block_begin[token] + position / a.block_tokens];
  return size_t(block) * a.block_tokens + position % a.block_tokens;
}

// Scores of one key per lane against all heads of the group; q in shared memory.
template <int kHeadDim>
__device__ void ScoreKey(const __nv_bfloat16* key, const float (*q)[kHeadDim], int heads,
                         float (&scores)[kGroup]) {
#pragma unroll
  for (int h = 0; h < kGroup; ++h) scores[h] = 0.0f;
#pragma unroll 4
  for (int column = 0; column < kHeadDim; column += 8) {
    const uint4 packed = *reinterpret_cast<const uint4*>(key + column);
    const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&packed);
    float k[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = __bfloat1622float2(pairs[i]);
      k[2 * i] = pair.x;
      k[2 * i + 1] = pair.y;
    }
#pragma unroll
    for (int h = 0; h < kGroup; ++h) {
      if (h >= heads) break;
#pragma unroll
      for (int i = 0; i < 8; ++i) scores[h] = fmaf(q[h][column + i], k[i], scores[h]);
    }
  }
}

__device__ float WarpMax(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

template <int kHeadDim>
struct AttentionShared {
  float q[kGroup][kHeadDim];
  float probability[kWarps][32][kGroup];
  float maximum[kWarps][kGroup];
  float sum[kWarps][kGroup];
  float value[kWarps][kGroup][kHeadDim];
};

// Joins the warps' results for head `h` and column `column`; returns the block's value.
template <int kHeadDim>
__device__ float JoinWarps(const AttentionShared<kHeadDim>& shared, int h, int column,
                           Softmax* total) {
  float maximum = -INFINITY;
  for (int w = 0; w < kWarps; ++w) maximum = fmaxf(maximum, shared.maximum[w][h]);
  float sum = 0.0f;
  float value = 0.0f;
  for (int w = 0; w < kWarps; ++w) {
    if (shared.sum[w][h] == 0.0f) continue;
    const float factor = __expf(shared.maximum[w][h] - maximum);
    sum += factor * shared.sum[w][h];
    value += factor * shared.value[w][h][column];
  }
  *total = {maximum, sum};
  return value;
}

// Grid: (token, KV head and group of its query heads, split).
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads) Attend(AttentionArguments a) {
  constexpr int kLaneColumns = kHeadDim / 32;
  extern __shared__ __align__(16) std::byte memory[];
  auto& shared = *reinterpret_cast<AttentionShared<kHeadDim>*>(memory);
  const int token = blockIdx.x;
  const int position = a.step.positions[token];
  if (position < 0) return;
  const int heads_per_kv = a.query_heads / a.kv_heads;
  const int groups = (heads_per_kv + kGroup - 1) / kGroup;
  const int kv_head = blockIdx.y / groups;
  const int first_head = kv_head * heads_per_kv + blockIdx.y % groups * kGroup;
  const int heads = min(kGroup, (kv_head + 1) * heads_per_kv - first_head);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int kv_width = a.kv_heads * kHeadDim;
  const float* q = a.q + (size_t(token) * a.query_heads + first_head) * kHeadDim;
  for (int i = threadIdx.x; i < heads * kHeadDim; i += kThreads) {
    shared.q[i / kHeadDim][i % kHeadDim] = q[i] * a.scale;
  }
  __syncthreads();

  const KeyRange range = RangeOf(a, position, blockIdx.z);
  Softmax softmax[kGroup];
  float value[kGroup][kLaneColumns] = {};
  for (int base = range.begin + warp * 32; base < range.end; base += kThreads) {
    const int key_position = base + lane;
    const bool inside = key_position < range.end;
    const size_t row = CacheRow(a, token, inside ? key_position : range.begin);
    float scores[kGroup];
    ScoreKey<kHeadDim>(a.keys + row * kv_width + kv_head * kHeadDim, shared.q, heads, scores);
#pragma unroll
    for (int h = 0; h < kGroup; ++h) {
      if (h >= heads) break;
      const float score = inside ? scores[h] : -INFINITY;
      const float maximum = fmaxf(softmax[h].maximum, WarpMax(score));
      const float correction = __expf(softmax[h].maximum - maximum);
      const float probability = __expf(score - maximum);
      softmax[h].sum = softmax[h].sum * correction + WarpSum(probability);
      softmax[h].maximum = maximum;
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) value[h][c] *= correction;
      shared.probability[warp][lane][h] = probability;
    }
    __syncwarp();
    const int count = min(32, range.end - base);
    for (int key = 0; key < count; ++key) {
      const size_t key_row = __shfl_sync(0xffffffffu, row, key);
      const __nv_bfloat16* v = a.values + key_row * kv_width + kv_head * kHeadDim;
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        const float v_value = __bfloat162float(v[c * 32 + lane]);
#pragma unroll
        for (int h = 0; h < kGroup; ++h) {
          if (h >= heads) break;
          value[h][c] = fmaf(shared.probability[warp][key][h], v_value, value[h][c]);
        }
      }
    }
    __syncwarp();
  }

#pragma unroll
  for (int h = 0; h < kGroup; ++h) {
    if (h >= heads) break;
    shared.maximum[warp][h] = softmax[h].maximum;
    shared.sum[warp][h] = softmax[h].sum;
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) shared.value[warp][h][c * 32 + lane] = value[h][c];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < heads * kHeadDim; i += kThreads) {
    const int h = i / kHeadDim;
    const int column = i % kHeadDim;
    Softmax total;
    const float joined = JoinWarps(shared, h, column, &total);
    const size_t head_row = size_t(token) * a.query_heads + first_head + h;
    if (a.splits == 1) {
      a.out[head_row * kHeadDim + column] = __float2bfloat16(joined / total.sum);
      continue;
    }
    // Per head and split: the maximum, the sum, then the values.
    float* partial = a.scratch + (head_row * a.splits + blockIdx.z) * (kHeadDim + 2);
    partial[2 + column] = joined;
    if (column == 0) {
      partial[0] = total.maximum;
      partial[1] = total.sum;
    }
  }
}

// Grid: (token, query head).
__global__ void JoinSplits(AttentionArguments a) {
  const int token = blockIdx.x;
  if (a.step.positions[token] < 0) return;
  const size_t head_row = size_t(token) * a.query_heads + blockIdx.y;
  const int stride = a.head_dim + 2;
  const float* partial = a.scratch + head_row * a.splits * stride;
  float maximum = -INFINITY;
  for (int s = 0; s < a.splits; ++s) maximum = fmaxf(maximum, partial[s * stride]);
  for (int column = threadIdx.x; column < a.head_dim; column += blockDim.x) {
    float sum = 0.0f;
    float value = 0.0f;
    for (int s = 0; s < a.splits; ++s) {
      const float* split = partial + s * stride;
      if (split[1] == 0.0f) continue;  // no key fell into this split
      const float factor = __expf(split[0] - maximum);
      sum += factor * split[1];
      value += factor * split[2 + column];
    }
    a.out[head_row * a.head_dim + column] = __float2bfloat16(value / sum);
  }
}

template <int kHeadDim>
bool Launch(const AttentionArguments& a, cudaStream_t stream) {
  constexpr int kSharedBytes = sizeof(AttentionShared<kHeadDim>);
  cudaFuncSetAttribute(Attend<kHeadDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  const int groups = (a.query_heads / a.kv_heads + kGroup - 1) / kGroup;
  Attend<kHeadDim>
      <<<dim3(a.tokens, a.kv_heads * groups, a.splits), kThreads, kSharedBytes, stream>>>(a);
  if (a.splits > 1) {
    JoinSplits<<<dim3(a.tokens, a.query_heads), kThreads, 0, stream>>>(a);
  }
  return true;
}

}  // namespace

size_t AttentionScratchBytes(int tokens, int query_heads, int head_dim, int splits) {
  return splits == 1 ? 0 : size_t(tokens) * query_heads * splits * (head_dim + 2) * sizeof(float);
}

int AttentionSplits(int tokens, int kv_heads, int max_context, int multiprocessors) {
  const int wanted = 2 * multiprocessors / std::max(1, tokens * kv_heads);
  const int useful = (max_context + kMinSplitTokens - 1) / kMinSplitTokens;
  return std::clamp(std::min(wanted, useful), 1, 64);
}

bool LaunchAttention(const AttentionArguments& a, cudaStream_t stream) {
  switch (a.head_dim) {
    case 32:
      return Launch<32>(a, stream);
    case 64:
      return Launch<64>(a, stream);
    case 96:
      return Launch<96>(a, stream);
    case 128:
      return Launch<128>(a, stream);
    case 256:
      return Launch<256>(a, stream);
    default:
      return false;
  }
}

}  // namespace moed::backend
