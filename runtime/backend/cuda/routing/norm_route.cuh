// The router from the residual on for a few tokens in one kernel: norm, logits by all blocks, the
// choice by the one that ends last, and what may follow from it at once.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cstddef>

#include "runtime/backend/cuda/primitives/last_block.cuh"
#include "runtime/backend/cuda/primitives/programmatic_launch.cuh"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"
#include "runtime/backend/cuda/routing/route_token.cuh"
#include "runtime/backend/cuda/routing/routing.h"

namespace moed::backend {

inline constexpr int kRouteWarps = 8;
inline constexpr int kRouteThreads = kRouteWarps * 32;
inline constexpr int kAhead = 16;  // weights of a warp's lane loaded before the norm, four each

// x * rsqrt(mean(x^2) + epsilon) * weight of rows x[0 .. kRows) into shared memory; rows from
// `rows` on are left alone.
template <int kRows>
__device__ void NormRows(const NormRouteArguments& a, const float* x, int rows, float* normed) {
  constexpr int kHeld = 8;
  __shared__ float partial[kRows][kRouteWarps];
  float weight[kHeld];  // of the thread's first columns, on their way with the rows
#pragma unroll
  for (int c = 0; c < kHeld; ++c) {
    const int i = c * kRouteThreads + threadIdx.x;
    weight[c] = i < a.hidden ? a.norm_weight[i] : 0.0f;
  }
  float squares[kRows] = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    for (int i = threadIdx.x; i < a.hidden; i += kRouteThreads) {
      const float value = x[size_t(r) * a.hidden + i];
      normed[r * a.hidden + i] = value;
      squares[r] += value * value;
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    squares[r] = WarpSum(squares[r]);
    if (threadIdx.x % 32 == 0) partial[r][threadIdx.x / 32] = squares[r];
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kRouteWarps; ++w) total += partial[r][w];
    const float scale = rsqrtf(total / a.hidden + a.epsilon);
#pragma unroll
    for (int c = 0; c < kHeld; ++c) {
      const int i = c * kRouteThreads + threadIdx.x;
      if (i < a.hidden) normed[r * a.hidden + i] *= scale * weight[c];
    }
    for (int i = kHeld * kRouteThreads + threadIdx.x; i < a.hidden; i += kRouteThreads) {
      normed[r * a.hidden + i] *= scale * a.norm_weight[i];
    }
  }
  __syncthreads();
}

__device__ inline float Dot4(const float4& w, const float* values) {
  const float4 x = *reinterpret_cast<const float4*>(values);
  return w.x * x.x + w.y * x.y + w.z * x.z + w.w * x.w;
}

// An expert's weights, of which `kSplit` warps take a part each: every kSplit-th run of 128.
template <int kSplit>
struct RouterWeights {
  const float* expert;
  int hidden;
  int part;
  int lane;
  float4 ahead[kAhead / kSplit];

  __device__ int Column(int i) const { return ((i * kSplit + part) * 32 + lane) * 4; }
  __device__ float4 Load(int i) const {
    return *reinterpret_cast<const float4*>(expert + Column(i));
  }
  __device__ void LoadAhead() {
#pragma unroll
    for (int i = 0; i < kAhead / kSplit; ++i) {
      if (Column(i) < hidden) ahead[i] = Load(i);
    }
  }
  // The warp's part of the product with a row.
  __device__ float Multiply(const float* row) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kAhead / kSplit; ++i) {
      if (Column(i) < hidden) sum += Dot4(ahead[i], row + Column(i));
    }
    for (int i = kAhead / kSplit; Column(i) < hidden; ++i) sum += Dot4(Load(i), row + Column(i));
    return WarpSum(sum);
  }
};

// The logits of kRows rows for the experts of a block, kRouteWarps / kSplit of them.
template <int kRows, int kSplit>
__device__ void StoreLogits(const NormRouteArguments& a, const RouterWeights<kSplit>& router,
                            const float* normed, int first_token, int rows) {
  __shared__ float parts[kRows][kRouteWarps];
  const int warp = threadIdx.x / 32;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    const float sum = router.Multiply(normed + r * a.hidden);
    if (router.lane == 0) parts[r][warp] = sum;
  }
  __syncthreads();
  constexpr int kExperts = kRouteWarps / kSplit;
  const int row = threadIdx.x / kExperts;
  const int expert = blockIdx.x * kExperts + threadIdx.x % kExperts;
  if (row >= rows || expert >= a.spec.num_experts) return;
  float logit = 0.0f;
#pragma unroll
  for (int i = 0; i < kSplit; ++i) logit += parts[row][threadIdx.x % kExperts * kSplit + i];
  a.logits[size_t(first_token + row) * a.spec.num_experts + expert] = logit;
}

// Grid: (experts by kRouteWarps / kSplit, tokens by kRows). Every block norms its rows for itself,
// which costs less than a launch, while the first weights are on their way. tail(choice, normed),
// if the tail routes at all: by all threads of the block that routed its rows last; `choice` is
// that of the warp's token, `normed` the block's shared memory, which is free.
template <int kRows, int kSplit, class Tail>
__global__ void __launch_bounds__(kRouteThreads, 2)
    NormRoute(NormRouteArguments a, int tokens, const __grid_constant__ Tail tail) {
  extern __shared__ __align__(16) float normed[];  // [kRows][hidden]
  const int first_token = blockIdx.y * kRows;
  const int rows = min(kRows, tokens - first_token);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const size_t first = size_t(first_token) * a.hidden;
  const int expert = min(int(blockIdx.x * kRouteWarps + warp) / kSplit, a.spec.num_experts - 1);
  RouterWeights<kSplit> router = {.expert = a.router + size_t(expert) * a.hidden,
                                  .hidden = a.hidden,
                                  .part = warp % kSplit,
                                  .lane = lane};
  router.LoadAhead();
  LetNextKernelBegin();
  WaitForKernelAhead();
  NormRows<kRows>(a, a.x + first, rows, normed);
  if (blockIdx.x == 0) {
    for (int i = threadIdx.x; i < rows * a.hidden; i += kRouteThreads) {
      a.normed[first + i] = __float2bfloat16(normed[i]);
      a.normed_f32[first + i] = normed[i];
    }
  }
  StoreLogits<kRows>(a, router, normed, first_token, rows);
  if (!Tail::kRoutes || !LastBlock(a.arrived + blockIdx.y, gridDim.x)) return;
  RoutedExpert choice;
  if (warp < rows) {
    choice = RouteAnyToken({a.spec, a.logits, a.ids, a.weights}, first_token + warp, lane);
  }
  tail(choice, reinterpret_cast<std::byte*>(normed));
}

template <int kRows, int kSplit>
LaunchShape NormRouteShape(const NormRouteArguments& arguments, int tokens) {
  constexpr int kExperts = kRouteWarps / kSplit;
  return {.grid = dim3((arguments.spec.num_experts + kExperts - 1) / kExperts,
                       (tokens + kRows - 1) / kRows),
          .block = kRouteThreads,
          .shared_bytes = kRows * arguments.hidden * sizeof(float)};
}

// `least_shared_bytes`: that the tail wants.
template <int kRows, int kSplit, class Tail>
cudaError_t LaunchNormRouteRows(const NormRouteArguments& arguments, int tokens, const Tail& tail,
                                size_t least_shared_bytes, cudaStream_t stream) {
  LaunchShape shape = NormRouteShape<kRows, kSplit>(arguments, tokens);
  shape.shared_bytes = std::max(shape.shared_bytes, least_shared_bytes);
  return LaunchAhead(NormRoute<kRows, kSplit, Tail>, shape, stream, arguments, tokens, tail);
}

// Tokens up to which all warps of a block share one expert, so that all multiprocessors read.
inline constexpr int kSplittingTokens = 2;
// Rows that a block takes at once, so that the router's weights are read less often; with few
// tokens more blocks are worth more.
inline constexpr int kSharedRows = 2;
inline constexpr int kSharingTokens = 16;
inline constexpr size_t kMostSharedBytes = 48 << 10;
static_assert(kSharedRows <= kRouteWarps);

template <class Tail>
cudaError_t LaunchNormRouteOf(const NormRouteArguments& arguments, int tokens, const Tail& tail,
                              size_t least_shared_bytes, cudaStream_t stream) {
  const bool share = tokens >= kSharingTokens &&
                     kSharedRows * arguments.hidden * sizeof(float) <= kMostSharedBytes;
  const auto launch = share                        ? LaunchNormRouteRows<kSharedRows, 1, Tail>
                      : tokens <= kSplittingTokens ? LaunchNormRouteRows<1, kRouteWarps, Tail>
                                                   : LaunchNormRouteRows<1, 1, Tail>;
  return launch(arguments, tokens, tail, least_shared_bytes, stream);
}

}  // namespace moed::backend
