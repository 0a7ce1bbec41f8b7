// Chooses the next token from a row of logits, on the host. Options apply in the order of Hugging
// Face transformers: repetition penalty, presence and frequency penalties, logit bias, forbidden
// tokens, temperature, top-k, top-p, min-p. The reference of backend/row_sampler.h. Owned by the
// step sampler; engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/model/logits_row.h"
#include "runtime/model/sampling.h"
#include "runtime/model/step.h"

namespace moed::model {

class Sampler {
 public:
  // Scratch for rows of `vocab_size` logits is taken here.
  explicit Sampler(int vocab_size);

  // Fills token, logprob and top_logprobs of `result` from `logits` [V]. Sets `invalid` instead if
  // the row holds a NaN or +infinity, or leaves nothing to choose. The state is read, not advanced.
  void Sample(std::span<const float> logits, const SamplerState& state, ChunkResult* result);

  // The log-probability of `token` (left out if negative), then of the `count` most probable
  // tokens: natural log of the unscaled softmax of `logits` [V]. Empty if the row is invalid.
  std::vector<TokenLogprob> Logprobs(std::span<const float> logits, int32_t token, int count);

 private:
  std::span<const float> Adjust(std::span<const float> logits, const SamplerState& state);
  int32_t Choose(std::span<const float> logits, const RowMaximum& maximum,
                 const SamplerState& state);
  int32_t ChooseAmongHighest(std::span<const float> logits, float maximum,
                             const SamplingParams& params, double draw);
  int32_t ChooseAmongAll(std::span<const float> logits, float maximum, const SamplingParams& params,
                         double draw);

  std::vector<float> adjusted_;       // [V] logits after penalties and bias
  std::vector<float> weights_;        // [V] exponentials
  std::vector<ScoredToken> highest_;  // of top-k, or of the top log-probabilities
};

}  // namespace moed::model
