#include <cmath>

#include "runtime/backend/cuda/routing.h"
#include "runtime/backend/cuda/tensor_core.cuh"

namespace moed::backend {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
// Logits of a row that a warp holds in registers, 32 each.
constexpr int kMostPerLane = 16;
constexpr int kAhead = 16;  // weights of a lane that are loaded before the norm, four each
// Rows that a block takes at once, so that the router's weights are read less often; with few
// tokens more blocks are worth more.
constexpr int kSharedRows = 4;
constexpr int kSharingTokens = 16;
constexpr size_t kMostSharedBytes = 48 << 10;
static_assert(kSharedRows <= kWarps);

struct RouteArguments {
  RouterSpec spec;
  const float* logits = nullptr;  // [T, E]
  int32_t* ids = nullptr;         // [T, k]
  float* weights = nullptr;       // [T, k]
};

// A NaN logit ranks below every number, so a broken row still names valid experts.
__device__ float RankValue(float logit) { return isnan(logit) ? -INFINITY : logit; }

// Moves (value, id) to the next expert in falling order of value, rising order of id; every lane
// gets it. Expert e = i * 32 + lane is `values[i]`.
template <int kPerLane>
__device__ void MoveToNextBest(const float (&values)[kPerLane], int experts, int lane, float* value,
                               int* id) {
  float best = -INFINITY;
  int best_id = experts;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * 32 + lane;
    const float candidate = RankValue(values[i]);
    const bool after = e < experts && (candidate < *value || (candidate == *value && e > *id));
    if (after && (best_id == experts || candidate > best)) {
      best = candidate;
      best_id = e;
    }
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, best, offset);
    const int other_id = __shfl_xor_sync(0xffffffffu, best_id, offset);
    const bool better = other_id < experts && (best_id == experts || other > best ||
                                               (other == best && other_id < best_id));
    if (better) {
      best = other;
      best_id = other_id;
    }
  }
  *value = best;
  *id = best_id;
}

// The router's choice for one token, by one warp.
template <int kPerLane>
__device__ void RouteToken(const RouteArguments& a, int token, int lane) {
  const RouterSpec& spec = a.spec;
  const float* row = a.logits + size_t(token) * spec.num_experts;
  int32_t* chosen = a.ids + size_t(token) * spec.top_k;
  float* weight = a.weights + size_t(token) * spec.top_k;
  float values[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * 32 + lane;
    values[i] = e < spec.num_experts ? row[e] : 0.0f;
  }
  float value = INFINITY;
  int id = -1;
  float maximum = 0.0f;
  float chosen_sum = 0.0f;
  const bool sigmoid = spec.scoring == RouterSpec::Scoring::kSigmoid;
  for (int rank = 0; rank < spec.top_k; ++rank) {
    MoveToNextBest(values, spec.num_experts, lane, &value, &id);
    const float logit = value > -INFINITY ? value : row[id];  // which may be NaN
    if (rank == 0) maximum = logit;
    const float score = sigmoid ? 1.0f / (1.0f + __expf(-logit)) : __expf(logit - maximum);
    chosen_sum += score;
    if (lane == 0) {
      chosen[rank] = id;
      weight[rank] = score;
    }
  }
  float denominator = 1.0f;
  if (!sigmoid) {
    denominator = chosen_sum;
    if (!spec.softmax_after_topk) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        if (i * 32 + lane < spec.num_experts) sum += __expf(values[i] - maximum);
      }
      denominator = WarpSum(sum);
    }
  }
  float scale = spec.scale / denominator;
  if (spec.normalize_topk) scale /= chosen_sum / denominator + spec.normalize_epsilon;
  __syncwarp();
  for (int rank = lane; rank < spec.top_k; rank += 32) weight[rank] *= scale;
}

__device__ void RouteAnyToken(const RouteArguments& a, int token, int lane) {
  if (a.spec.num_experts <= 4 * 32) {
    RouteToken<4>(a, token, lane);
  } else {
    RouteToken<kMostPerLane>(a, token, lane);
  }
}

__global__ void __launch_bounds__(kThreads) Route(RouteArguments a, int tokens) {
  const int token = blockIdx.x * kWarps + threadIdx.x / 32;
  if (token < tokens) RouteAnyToken(a, token, threadIdx.x % 32);
}

// x * rsqrt(mean(x^2) + epsilon) * weight of rows x[0 .. kRows) into shared memory; rows from
// `rows` on are left alone.
template <int kRows>
__device__ void NormRows(const NormRouteArguments& a, const float* x, int rows, float* normed) {
  __shared__ float partial[kRows][kWarps];
  float squares[kRows] = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    for (int i = threadIdx.x; i < a.hidden; i += kThreads) {
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
    for (int w = 0; w < kWarps; ++w) total += partial[r][w];
    const float scale = rsqrtf(total / a.hidden + a.epsilon);
    for (int i = threadIdx.x; i < a.hidden; i += kThreads) {
      normed[r * a.hidden + i] *= scale * a.norm_weight[i];
    }
  }
  __syncthreads();
}

// True in the block of some rows that ends last: it sees the logits of all.
__device__ bool LastBlock(int* arrived, int blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(arrived, 1) == blocks - 1;
    if (last) *arrived = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

__device__ float Dot4(const float4& w, const float* values) {
  const float4 x = *reinterpret_cast<const float4*>(values);
  return w.x * x.x + w.y * x.y + w.z * x.z + w.w * x.w;
}

// Grid: (experts by 8, tokens by kRows). Every block norms its rows for itself, which costs less
// than a launch.
template <int kRows>
__global__ void __launch_bounds__(kThreads, 2) NormRoute(NormRouteArguments a, int tokens) {
  extern __shared__ __align__(16) float normed[];  // [kRows][hidden]
  const int first_token = blockIdx.y * kRows;
  const int rows = min(kRows, tokens - first_token);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const size_t first = size_t(first_token) * a.hidden;
  const int expert = blockIdx.x * kWarps + warp;
  const float* router = a.router + size_t(min(expert, a.spec.num_experts - 1)) * a.hidden;
  // The first weights are on their way while the rows are normed.
  float4 ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int column = (i * 32 + lane) * 4;
    if (column < a.hidden) ahead[i] = *reinterpret_cast<const float4*>(router + column);
  }
  NormRows<kRows>(a, a.x + first, rows, normed);
  if (blockIdx.x == 0) {
    for (int i = threadIdx.x; i < rows * a.hidden; i += kThreads) {
      a.normed[first + i] = __float2bfloat16(normed[i]);
      a.normed_f32[first + i] = normed[i];
    }
  }
  if (expert < a.spec.num_experts) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      const float* row = normed + r * a.hidden;
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int column = (i * 32 + lane) * 4;
        if (column < a.hidden) sum += Dot4(ahead[i], row + column);
      }
      for (int column = (kAhead * 32 + lane) * 4; column < a.hidden; column += 32 * 4) {
        sum += Dot4(*reinterpret_cast<const float4*>(router + column), row + column);
      }
      sum = WarpSum(sum);
      if (lane == 0) a.logits[size_t(first_token + r) * a.spec.num_experts + expert] = sum;
    }
  }
  if (!LastBlock(a.arrived + blockIdx.y, gridDim.x) || warp >= rows) return;
  RouteAnyToken({a.spec, a.logits, a.ids, a.weights}, first_token + warp, lane);
}

template <int kRows>
void LaunchRows(const NormRouteArguments& arguments, int tokens, cudaStream_t stream) {
  const dim3 grid((arguments.spec.num_experts + kWarps - 1) / kWarps, (tokens + kRows - 1) / kRows);
  const size_t shared_bytes = kRows * arguments.hidden * sizeof(float);
  NormRoute<kRows><<<grid, kThreads, shared_bytes, stream>>>(arguments, tokens);
}

}  // namespace

void LaunchRoute(const RouterSpec& spec, const float* logits, int tokens, int32_t* ids,
                 float* weights, cudaStream_t stream) {
  Route<<<(tokens + kWarps - 1) / kWarps, kThreads, 0, stream>>>({spec, logits, ids, weights},
                                                                 tokens);
}

bool NormRouteSupports(int tokens, int hidden) {
  return tokens <= kMostNormRouteTokens && hidden % 4 == 0 &&
         hidden * sizeof(float) <= kMostSharedBytes;
}

void LaunchNormRoute(const NormRouteArguments& arguments, int tokens, cudaStream_t stream) {
  const bool share = tokens >= kSharingTokens &&
                     kSharedRows * arguments.hidden * sizeof(float) <= kMostSharedBytes;
  if (share) {
    LaunchRows<kSharedRows>(arguments, tokens, stream);
  } else {
    LaunchRows<1>(arguments, tokens, stream);
  }
}

}  // namespace moed::backend
