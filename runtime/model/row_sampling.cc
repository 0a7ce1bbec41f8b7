#include "runtime/model/row_sampling.h"

namespace moed::model {

static_assert(kMaxLogprobs <= backend::kMaxTopLogprobs);

int64_t CountAdjustments(const SamplerState& state) {
  return static_cast<int64_t>(state.seen().size() + state.params().logit_bias.size() +
                              state.forbidden().size());
}

backend::RowSampling MakeRowSampling(const SamplerState& state, int32_t row,
                                     std::vector<backend::LogitAdjustment>* adjustments) {
  const SamplingParams& params = state.params();
  const auto first = static_cast<int32_t>(adjustments->size());
  for (const auto& [token, seen] : state.seen()) {
    const float penalty = seen.output_count == 0
                              ? 0.0f
                              : params.presence_penalty + params.frequency_penalty *
                                                              static_cast<float>(seen.output_count);
    adjustments->push_back({token, penalty});
  }
  for (const auto& [token, bias] : params.logit_bias) adjustments->push_back({token, bias});
  for (int32_t token : state.forbidden()) adjustments->push_back({token, 0.0f});
  return {.row = row,
          .logprobs = params.logprobs,
          .inverse_temperature = state.greedy() ? 0.0f : 1 / params.temperature,
          .top_k = params.top_k > 0 ? params.top_k : 0,
          .top_p = params.top_p,
          .min_p = params.min_p,
          .repetition_penalty = params.repetition_penalty,
          .draw = state.greedy() ? 0.0 : state.Draw(),
          .first_adjustment = first,
          .num_penalties = static_cast<int32_t>(state.seen().size()),
          .num_biases = static_cast<int32_t>(params.logit_bias.size()),
          .num_forbidden = static_cast<int32_t>(state.forbidden().size())};
}

}  // namespace moed::model
