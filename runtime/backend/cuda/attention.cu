#include <algorithm>
#include <cmath>

#include "runtime/backend/cuda/attention.h"
#include "runtime/backend/cuda/attention_tiles.cuh"
#include "runtime/backend/cuda/prompt_runs.cuh"
#include "runtime/backend/cuda/tensor_core.cuh"

namespace moed::backend {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kGroup = 8;  // query heads of one KV head that a block handles together
constexpr int kTileKeys = 8;
constexpr int kWarpKeys = 2 * kTileKeys;  // of one pass
constexpr int kMinSplitTokens = 64;
constexpr int kMaxSplits = 64;
// More make joining their parts cost more than they gain.
constexpr int kBlocksPerMultiprocessor = 2;

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

__device__ int CacheRow(const AttentionArguments& a, int token, int position) {
  const int block = a.step.kv_blocks[a.step.block_begin[token] + position / a.block_tokens];
  return block * a.block_tokens + position % a.block_tokens;
}

// One warp's results, of a block's in shared memory; [warp][head][head_dim] values after them.
struct WarpResult {
  float maximum[kGroup];
  float sum[kGroup];
};

// Parts of a softmax over the same values, each scaled by exp(-maximum) of its own: what to scale
// them by so that they add up, and the inverse of the whole sum. One warp calls it; parts without a
// key have a sum of 0.
__device__ float JoinFactors(const float* maxima, const float* sums, int parts, int stride,
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

// True in the block that ends last of a (token, group)'s splits: it sees what the others wrote.
__device__ bool LastSplit(int* arrived, int splits) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(arrived, 1) == splits - 1;
    if (last) *arrived = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

// A warp's share of the keys: every kWarps-th run of kWarpKeys.
template <int kChunks, int kHalves>
__device__ void AttendWarp(const AttentionArguments& a, int token, int kv_head, KeyRange range,
                           const Queries<kChunks>& q, int warp, int lane,
                           Softmax<kHalves>* softmax) {
  const size_t width = size_t(a.kv_heads) * a.head_dim;
  const __nv_bfloat16* keys = a.keys + kv_head * a.head_dim;
  const __nv_bfloat16* values = a.values + kv_head * a.head_dim;
  const int g = lane / 4;
  const int t = lane % 4;
  for (int base = range.begin + warp * kWarpKeys; base < range.end; base += kWarps * kWarpKeys) {
    uint4 key[2][kChunks];
    uint4 even[2][kHalves];
    uint4 odd[2][kHalves];
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const int position = min(base + tile * kTileKeys + g, range.end - 1);
      const int row = CacheRow(a, token, position);
      const int even_row = __shfl_sync(0xffffffffu, row, t * 8);
      const int odd_row = __shfl_sync(0xffffffffu, row, t * 8 + 4);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        key[tile][c] = Load16(keys + row * width, c * 32 + t * 8, a.head_dim);
      }
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        even[tile][h] = Load16(values + even_row * width, h * 64 + g * 8, a.head_dim);
        odd[tile][h] = Load16(values + odd_row * width, h * 64 + g * 8, a.head_dim);
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
        values[(warp * kGroup + head) * head_dim + column] = softmax.value[m][r];
      }
    }
  }
}

// Of a split: per head the maximum, the sum, two words of padding, then the values.
__device__ size_t PartStride(int head_dim) { return head_dim + 4; }

// Adds the warps' results: to the output, or with several splits to this one's part.
__device__ void JoinWarps(const AttentionArguments& a, const WarpResult* results,
                          const float* values, size_t first_row, int heads) {
  __shared__ float factors[kGroup][kWarps];
  __shared__ float inverse_sum[kGroup];
  const int lane = threadIdx.x % 32;
  const size_t part_row = first_row * a.splits + blockIdx.z;
  for (int head = threadIdx.x / 32; head < heads; head += kWarps) {
    float maximum;
    float sum;
    const float inverse =
        JoinFactors(&results[0].maximum[head], &results[0].sum[head], kWarps,
                    sizeof(WarpResult) / sizeof(float), factors[head], lane, &maximum, &sum);
    if (lane > 0) continue;
    inverse_sum[head] = inverse;
    if (a.splits == 1) continue;
    float* part = a.scratch + (part_row + size_t(head) * a.splits) * PartStride(a.head_dim);
    part[0] = maximum;
    part[1] = sum;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < heads * a.head_dim; i += kThreads) {
    const int head = i / a.head_dim;
    float value = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      value += factors[head][w] * values[w * kGroup * a.head_dim + i];
    }
    if (a.splits == 1) {
      a.out[first_row * a.head_dim + i] = __float2bfloat16(value * inverse_sum[head]);
    } else {
      float* part = a.scratch + (part_row + size_t(head) * a.splits) * PartStride(a.head_dim);
      part[4 + i % a.head_dim] = value;
    }
  }
}

// Adds the parts of all splits.
__device__ void JoinSplits(const AttentionArguments& a, size_t first_row, int heads) {
  __shared__ float factors[kGroup][kMaxSplits];
  __shared__ float inverse_sum[kGroup];
  const int lane = threadIdx.x % 32;
  const size_t stride = PartStride(a.head_dim);
  const float* parts = a.scratch + first_row * a.splits * stride;
  for (int head = threadIdx.x / 32; head < heads; head += kWarps) {
    const float* first = parts + size_t(head) * a.splits * stride;
    float maximum;
    float sum;
    const float inverse = JoinFactors(first, first + 1, a.splits, static_cast<int>(stride),
                                      factors[head], lane, &maximum, &sum);
    if (lane == 0) inverse_sum[head] = inverse;
  }
  __syncthreads();
  // Four columns a thread: head_dim is a multiple of 8.
  const int quads = a.head_dim / 4;
  for (int i = threadIdx.x; i < heads * quads; i += kThreads) {
    const int head = i / quads;
    const float* column = parts + size_t(head) * a.splits * stride + 4 + i % quads * 4;
    float4 value = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int split = 0; split < a.splits; ++split) {
      const float4 part = *reinterpret_cast<const float4*>(column + split * stride);
      const float factor = factors[head][split];
      value.x = fmaf(factor, part.x, value.x);
      value.y = fmaf(factor, part.y, value.y);
      value.z = fmaf(factor, part.z, value.z);
      value.w = fmaf(factor, part.w, value.w);
    }
    auto* out = reinterpret_cast<__nv_bfloat162*>(a.out + first_row * a.head_dim + i * 4);
    const float scale = inverse_sum[head];
    out[0] = __floats2bfloat162_rn(value.x * scale, value.y * scale);
    out[1] = __floats2bfloat162_rn(value.z * scale, value.w * scale);
  }
}

// Grid: (token, KV head and group of its query heads, split).
template <int kChunks>
__global__ void __launch_bounds__(kThreads) Attend(AttentionArguments a) {
  constexpr int kHalves = (kChunks + 1) / 2;
  extern __shared__ __align__(16) float values[];  // [kWarps][kGroup][head_dim]
  __shared__ WarpResult results[kWarps];
  const int token = blockIdx.x;
  const int position = a.step.positions[token];
  if (position < 0) return;
  if (a.prompts_apart && RunOf(a.step, a.tokens, token).IsTiled()) return;
  const int heads_per_kv = a.query_heads / a.kv_heads;
  const int groups = (heads_per_kv + kGroup - 1) / kGroup;
  const int kv_head = blockIdx.y / groups;
  const int first_head = kv_head * heads_per_kv + blockIdx.y % groups * kGroup;
  const int heads = min(kGroup, (kv_head + 1) * heads_per_kv - first_head);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const size_t first_row = size_t(token) * a.query_heads + first_head;

  const Queries<kChunks> q(a.q + first_row * a.head_dim, heads, a.head_dim, a.scale, lane);
  Softmax<kHalves> softmax;
  AttendWarp<kChunks, kHalves>(a, token, kv_head, RangeOf(a, position, blockIdx.z), q, warp, lane,
                               &softmax);
  StoreWarp(softmax, a.head_dim, warp, lane, results, values);
  __syncthreads();

  JoinWarps(a, results, values, first_row, heads);
  if (a.splits == 1 || !LastSplit(a.arrived + token * gridDim.y + blockIdx.y, a.splits)) return;
  JoinSplits(a, first_row, heads);
}

int HeadGroups(int query_heads, int kv_heads) {
  return kv_heads * ((query_heads / kv_heads + kGroup - 1) / kGroup);
}

template <int kChunks>
void Launch(const AttentionArguments& a, cudaStream_t stream) {
  const int shared_bytes = kWarps * kGroup * a.head_dim * static_cast<int>(sizeof(float));
  Attend<kChunks><<<dim3(a.tokens, HeadGroups(a.query_heads, a.kv_heads), a.splits), kThreads,
                    shared_bytes, stream>>>(a);
}

}  // namespace

size_t AttentionScratchBytes(int tokens, int query_heads, int head_dim, int splits) {
  return splits == 1 ? 0 : size_t(tokens) * query_heads * splits * (head_dim + 4) * sizeof(float);
}

int AttentionSplits(int tokens, int query_heads, int kv_heads, int max_context,
                    int multiprocessors) {
  const int blocks = std::max(1, tokens * HeadGroups(query_heads, kv_heads));
  if (blocks > kMaxSplitGroups) return 1;
  const int wanted = kBlocksPerMultiprocessor * multiprocessors / blocks;
  const int useful = (max_context + kMinSplitTokens - 1) / kMinSplitTokens;
  return std::clamp(std::min(wanted, useful), 1, kMaxSplits);
}

bool LaunchAttention(const AttentionArguments& a, cudaStream_t stream) {
  if (a.head_dim % 8 != 0) return false;
  switch ((a.head_dim + 31) / 32) {
    case 1:
      Launch<1>(a, stream);
      return true;
    case 2:
      Launch<2>(a, stream);
      return true;
    case 3:
      Launch<3>(a, stream);
      return true;
    case 4:
      Launch<4>(a, stream);
      return true;
    case 5:
    case 6:
      Launch<6>(a, stream);
      return true;
    case 7:
    case 8:
      Launch<8>(a, stream);
      return true;
    default:
      return false;
  }
}

}  // namespace moed::backend
