#include "runtime/backend/cpu/routing.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace moed::backend {
namespace {

// Fills `ids` with the largest logits' positions, largest first, lower position first among equals.
void SelectTopK(std::span<const float> logits, std::span<int32_t> ids) {
  auto rank_value = [&logits](int32_t id) {
    return std::isnan(logits[id]) ? -std::numeric_limits<float>::infinity() : logits[id];
  };
  size_t count = 0;
  for (int32_t expert = 0; expert < static_cast<int32_t>(logits.size()); ++expert) {
    const float value = rank_value(expert);
    if (count == ids.size() && !(value > rank_value(ids[count - 1]))) continue;
    size_t place = std::min(count, ids.size() - 1);
    for (; place > 0 && value > rank_value(ids[place - 1]); --place) ids[place] = ids[place - 1];
    ids[place] = expert;
    count = std::min(count + 1, ids.size());
  }
}

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// Sum of exp(logits - maximum), the denominator of a softmax over them.
float SumOfExponentials(std::span<const float> logits, float maximum) {
  float sum = 0;
  for (float logit : logits) sum += std::exp(logit - maximum);
  return sum;
}

void ScoreChosen(const RouterSpec& spec, std::span<const float> logits,
                 std::span<const int32_t> ids, std::span<float> weights) {
  const float maximum = logits[ids[0]];
  for (size_t r = 0; r < ids.size(); ++r) {
    const float logit = logits[ids[r]];
    weights[r] =
        spec.scoring == RouterSpec::Scoring::kSigmoid ? Sigmoid(logit) : std::exp(logit - maximum);
  }
  if (spec.scoring == RouterSpec::Scoring::kSigmoid) return;
  float denominator = 0;
  if (spec.softmax_after_topk) {
    for (float weight : weights) denominator += weight;
  } else {
    denominator = SumOfExponentials(logits, maximum);
  }
  for (float& weight : weights) weight /= denominator;
}

}  // namespace

void RouteToken(const RouterSpec& spec, std::span<const float> logits, std::span<int32_t> ids,
                std::span<float> weights) {
  SelectTopK(logits, ids);
  ScoreChosen(spec, logits, ids, weights);
  float scale = spec.scale;
  if (spec.normalize_topk) {
    float sum = 0;
    for (float weight : weights) sum += weight;
    scale /= sum + spec.normalize_epsilon;
  }
  for (float& weight : weights) weight *= scale;
}

void RouteTokens(ThreadPool& pool, const RouterSpec& spec, const Tensor& logits, const Tensor& ids,
                 const Tensor& weights) {
  const size_t experts = spec.num_experts;
  const size_t top_k = spec.top_k;
  auto body = [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      RouteToken(spec, {logits.As<float>() + t * experts, experts},
                 {ids.As<int32_t>() + t * top_k, top_k}, {weights.As<float>() + t * top_k, top_k});
    }
  };
  constexpr int64_t kTokensPerChunk = 16;
  pool.ParallelFor(logits.dim(0), kTokensPerChunk, body);
}

}  // namespace moed::backend
