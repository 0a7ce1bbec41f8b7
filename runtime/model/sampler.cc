#include "runtime/model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace moed::model {
namespace {

// How many of the leading weights, in falling order, top-p and min-p keep; at least one.
size_t CountKept(std::span<const float> weights, const SamplingParams& params) {
  double total = 0;
  for (float weight : weights) total += weight;
  size_t kept = 0;
  double sum = 0;
  while (kept < weights.size() && weights[kept] >= params.min_p * weights[0]) {
    sum += weights[kept++];
    if (params.top_p < 1 && sum >= params.top_p * total) break;
  }
  return kept;
}

// The first index at which the running sum of weights passes `draw` of their total.
size_t IndexAt(std::span<const float> weights, double draw) {
  double total = 0;
  for (float weight : weights) total += weight;
  const double target = draw * total;
  double sum = 0;
  size_t last = 0;
  for (size_t i = 0; i < weights.size() && sum <= target; ++i) {
    if (weights[i] <= 0) continue;
    sum += weights[i];
    last = i;
  }
  return last;
}

}  // namespace

Sampler::Sampler(int vocab_size) : adjusted_(vocab_size), weights_(vocab_size) {}

void Sampler::Sample(std::span<const float> logits, const SamplerState& state,
                     ChunkResult* result) {
  RowMaximum maximum = FindMaximum(logits);
  const std::span<const float> adjusted = maximum.valid ? Adjust(logits, state) : logits;
  if (adjusted.data() != logits.data()) maximum = FindMaximum(adjusted);
  result->invalid = !maximum.valid;
  if (result->invalid) return;
  result->token = Choose(adjusted, maximum, state);
  if (state.params().logprobs < 0) return;
  const std::vector<TokenLogprob> logprobs =
      Logprobs(logits, result->token, state.params().logprobs);
  result->logprob = logprobs.front().logprob;
  result->top_logprobs.assign(logprobs.begin() + 1, logprobs.end());
}

std::vector<TokenLogprob> Sampler::Logprobs(std::span<const float> logits, int32_t token,
                                            int count) {
  std::vector<TokenLogprob> logprobs;
  const RowMaximum maximum = FindMaximum(logits);
  if (!maximum.valid) return logprobs;
  const double log_sum = maximum.value + std::log(SumOfExponentials(logits, maximum.value));
  if (token >= 0) {
    logprobs.push_back({token, static_cast<float>(logits[token] - log_sum)});
  }
  SelectHighest(logits, count, &highest_);
  for (const ScoredToken& highest : highest_) {
    logprobs.push_back({highest.id, static_cast<float>(highest.score - log_sum)});
  }
  return logprobs;
}

std::span<const float> Sampler::Adjust(std::span<const float> logits, const SamplerState& state) {
  const SamplingParams& params = state.params();
  if (state.seen().empty() && params.logit_bias.empty() && state.forbidden().empty()) {
    return logits;
  }
  std::copy(logits.begin(), logits.end(), adjusted_.begin());
  for (const auto& [token, seen] : state.seen()) {
    float& logit = adjusted_[token];
    logit = logit < 0 ? logit * params.repetition_penalty : logit / params.repetition_penalty;
    if (seen.output_count == 0) continue;
    logit -=
        params.presence_penalty + params.frequency_penalty * static_cast<float>(seen.output_count);
  }
  for (const auto& [token, bias] : params.logit_bias) adjusted_[token] += bias;
  for (int32_t token : state.forbidden()) {
    adjusted_[token] = -std::numeric_limits<float>::infinity();
  }
  return adjusted_;
}

int32_t Sampler::Choose(std::span<const float> logits, const RowMaximum& maximum,
                        const SamplerState& state) {
  const SamplingParams& params = state.params();
  if (state.greedy()) return maximum.id;
  const double draw = state.Draw();
  const bool has_top_k = params.top_k > 0 && static_cast<size_t>(params.top_k) < logits.size();
  return has_top_k ? ChooseAmongHighest(logits, maximum.value, params, draw)
                   : ChooseAmongAll(logits, maximum.value, params, draw);
}

int32_t Sampler::ChooseAmongHighest(std::span<const float> logits, float maximum,
                                    const SamplingParams& params, double draw) {
  SelectHighest(logits, params.top_k, &highest_);
  const std::span<float> weights = std::span(weights_).first(highest_.size());
  for (size_t i = 0; i < highest_.size(); ++i) weights[i] = highest_[i].score;
  Exponentials(weights, maximum, 1 / params.temperature, weights);
  return highest_[IndexAt(weights.first(CountKept(weights, params)), draw)].id;
}

int32_t Sampler::ChooseAmongAll(std::span<const float> logits, float maximum,
                                const SamplingParams& params, double draw) {
  const double total = Exponentials(logits, maximum, 1 / params.temperature, weights_);
  // The highest weight is 1, so min-p is a threshold on the weights themselves.
  ScoredToken boundary = {.id = static_cast<int32_t>(logits.size()), .score = params.min_p};
  if (params.top_p < 1) {
    const ScoredToken nucleus = NucleusBoundary(weights_, total, params.top_p);
    if (RanksBefore(nucleus, boundary)) boundary = nucleus;
  }
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (RanksBefore(boundary, {static_cast<int32_t>(i), weights_[i]})) weights_[i] = 0;
  }
  return static_cast<int32_t>(IndexAt(weights_, draw));
}

}  // namespace moed::model
