#include <cmath>

#include "runtime/backend/cuda/routing.h"
#include "runtime/backend/cuda/tensor_core.cuh"

namespace moed::backend {
namespace {

constexpr int kWarps = 4;

// A NaN logit ranks below every number, so a broken row still names valid experts.
__device__ float RankValue(float logit) { return isnan(logit) ? -INFINITY : logit; }

// The best expert of the row that comes after (value, id) in falling order; every lane gets it.
__device__ int NextBest(const float* logits, int experts, float value, int id, int lane) {
  float best = -INFINITY;
  int best_id = experts;
  for (int e = lane; e < experts; e += 32) {
    const float candidate = RankValue(logits[e]);
    const bool after = candidate < value || (candidate == value && e > id);
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
  return best_id;
}

__global__ void Route(RouterSpec spec, const float* logits, int tokens, int32_t* ids,
                      float* weights) {
  const int token = blockIdx.x * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (token >= tokens) return;
  const float* row = logits + size_t(token) * spec.num_experts;
  int32_t* chosen = ids + size_t(token) * spec.top_k;
  float* weight = weights + size_t(token) * spec.top_k;

  float value = INFINITY;
  int id = -1;
  float maximum = 0.0f;
  float chosen_sum = 0.0f;
  const bool sigmoid = spec.scoring == RouterSpec::Scoring::kSigmoid;
  for (int rank = 0; rank < spec.top_k; ++rank) {
    id = NextBest(row, spec.num_experts, value, id, lane);
    value = RankValue(row[id]);
    if (rank == 0) maximum = row[id];
    const float score = sigmoid ? 1.0f / (1.0f + __expf(-row[id])) : __expf(row[id] - maximum);
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
      for (int e = lane; e < spec.num_experts; e += 32) sum += __expf(row[e] - maximum);
      denominator = WarpSum(sum);
    }
  }
  float scale = spec.scale / denominator;
  if (spec.normalize_topk) scale /= chosen_sum / denominator + spec.normalize_epsilon;
  __syncwarp();
  for (int rank = lane; rank < spec.top_k; rank += 32) weight[rank] *= scale;
}

}  // namespace

void LaunchRoute(const RouterSpec& spec, const float* logits, int tokens, int32_t* ids,
                 float* weights, cudaStream_t stream) {
  Route<<<(tokens + kWarps - 1) / kWarps, kWarps * 32, 0, stream>>>(spec, logits, tokens, ids,
                                                                    weights);
}

}  // namespace moed::backend
