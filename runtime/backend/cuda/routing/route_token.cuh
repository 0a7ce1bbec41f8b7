// The router's choice for one token from its logits, by one warp.
#pragma once

#include <cmath>

#include "runtime/backend/cuda/primitives/tensor_core.cuh"
#include "runtime/backend/cuda/routing/routing.h"

namespace moed::backend {

// Logits of a row that a warp holds in registers, 32 each.
inline constexpr int kMostPerLane = 16;

struct RouteArguments {
  RouterSpec spec;
  const float* logits = nullptr;  // [T, E]
  int32_t* ids = nullptr;         // [T, k]
  float* weights = nullptr;       // [T, k]
};

// A NaN logit ranks below every number, so a broken row still names valid experts.
__device__ inline float RankValue(float logit) { return isnan(logit) ? -INFINITY : logit; }

// Orders floats as unsigned numbers: greater if and only if greater. 0 stands for none.
__device__ inline uint32_t OrderOf(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 is 0
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}
__device__ inline float ValueOf(uint32_t order) {
  return __uint_as_float(order ^ ((order >> 31) != 0 ? 0x80000000u : 0xffffffffu));
}

// Moves (order, id) to the next expert in falling order of logit, rising order of id; every lane
// gets it. Expert e = i * 32 + lane is `orders[i]`.
template <int kPerLane>
__device__ void MoveToNextBest(const uint32_t (&orders)[kPerLane], int lane, uint32_t* order,
                               int* id) {
  uint32_t best = 0;
  int best_id = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * 32 + lane;
    const bool after = orders[i] < *order || (orders[i] == *order && e > *id);
    if (after && orders[i] > best) {
      best = orders[i];
      best_id = e;
    }
  }
  *order = __reduce_max_sync(0xffffffffu, best);
  *id = static_cast<int>(
      __reduce_min_sync(0xffffffffu, best == *order ? uint32_t(best_id) : 0xffffffffu));
}

// Lane r's part of a token's choice: its expert of rank r, for r below 32 and top_k.
struct RoutedExpert {
  int id = 0;
  float weight = 0.0f;
};

// The router's choice for one token, by one warp.
template <int kPerLane>
__device__ RoutedExpert RouteToken(const RouteArguments& a, int token, int lane) {
  const RouterSpec& spec = a.spec;
  const float* row = a.logits + size_t(token) * spec.num_experts;
  int32_t* chosen = a.ids + size_t(token) * spec.top_k;
  float* weight = a.weights + size_t(token) * spec.top_k;
  float values[kPerLane];
  uint32_t orders[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * 32 + lane;
    values[i] = e < spec.num_experts ? row[e] : 0.0f;
    orders[i] = e < spec.num_experts ? OrderOf(RankValue(values[i])) : 0;
  }
  uint32_t order = 0xffffffffu;
  int id = -1;
  RoutedExpert mine;
  float maximum = 0.0f;
  float chosen_sum = 0.0f;
  const bool sigmoid = spec.scoring == RouterSpec::Scoring::kSigmoid;
  for (int rank = 0; rank < spec.top_k; ++rank) {
    MoveToNextBest(orders, lane, &order, &id);
    const float value = ValueOf(order);
    const float logit = value > -INFINITY ? value : row[id];  // which may be NaN
    if (rank == 0) maximum = logit;
    const float score = sigmoid ? 1.0f / (1.0f + __expf(-logit)) : __expf(logit - maximum);
    chosen_sum += score;
    if (lane == rank % 32) {
      if (rank < 32) {
        mine = {id, score};
      } else {
        chosen[rank] = id;
        weight[rank] = score;
      }
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
  mine.weight *= scale;
  if (lane < spec.top_k) {
    chosen[lane] = mine.id;
    weight[lane] = mine.weight;
  }
  for (int rank = lane + 32; rank < spec.top_k; rank += 32) weight[rank] *= scale;
  return mine;
}

__device__ inline RoutedExpert RouteAnyToken(const RouteArguments& a, int token, int lane) {
  return a.spec.num_experts <= 4 * 32 ? RouteToken<4>(a, token, lane)
                                      : RouteToken<kMostPerLane>(a, token, lane);
}

}  // namespace moed::backend
