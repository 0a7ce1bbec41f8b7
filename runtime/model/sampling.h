// How the next token of a sequence is chosen: parameters, and the state that goes with a sequence.
// SamplingParams is a value; SamplerState belongs to the engine's sequence and is read and advanced
// by the step runner on the engine thread.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"

namespace moed::model {

struct SamplingParams {
  float temperature = 1.0f;         // 0 to 100; 0: greedy
  int top_k = 0;                    // 0 or -1: off
  float top_p = 1.0f;               // above 0, to 1
  float min_p = 0.0f;               // 0 to 1, of the most probable token's probability
  float repetition_penalty = 1.0f;  // prompt and output tokens: logit < 0 multiplied, else divided
  float presence_penalty = 0.0f;    // -2 to 2; output tokens
  float frequency_penalty = 0.0f;   // -2 to 2; output tokens, times their count
  uint64_t seed = 0;
  std::vector<std::pair<int32_t, float>> logit_bias = {};  // each -100 to 100
  int logprobs = -1;  // -1: none; K to 20: the chosen token's and the K most probable
};

inline constexpr int kMaxLogprobs = 20;

// INVALID_ARGUMENT naming the field and its range: NaN, out of range, an unknown token id.
absl::Status ValidateSamplingParams(const SamplingParams& params, int vocab_size);

// Counter-based: draw i of a sequence depends on its seed and i alone, never on the batch.
class SamplerState {
 public:
  // `prompt` is only read here.
  SamplerState(SamplingParams params, std::span<const int32_t> prompt);

  // Biases in rising order of tokens.
  const SamplingParams& params() const { return params_; }
  // Below this temperature scaled logits would overflow, and only exact ties could still be chosen
  // at random.
  bool greedy() const { return params_.temperature < 1e-5f; }
  // Tokens that may not be chosen now (end tokens before min_tokens are reached).
  void Forbid(std::vector<int32_t> token_ids) { forbidden_ = std::move(token_ids); }
  const std::vector<int32_t>& forbidden() const { return forbidden_; }

  // Counts a chosen token for the penalties and moves to the next draw.
  void Accept(int32_t token);
  int64_t num_accepted() const { return num_accepted_; }
  // Of the next token, uniform in [0, 1).
  double Draw() const;

  struct Seen {
    bool in_prompt = false;
    int32_t output_count = 0;
  };
  // Filled only if a penalty needs it.
  const absl::flat_hash_map<int32_t, Seen>& seen() const { return seen_; }

 private:
  bool counts_prompt() const { return params_.repetition_penalty != 1.0f; }
  bool counts_output() const {
    return counts_prompt() || params_.presence_penalty != 0.0f || params_.frequency_penalty != 0.0f;
  }

  SamplingParams params_;
  std::vector<int32_t> forbidden_;
  absl::flat_hash_map<int32_t, Seen> seen_;
  int64_t num_accepted_ = 0;
};

}  // namespace moed::model
