#include "runtime/model/sampling.h"

#include <algorithm>
#include <string_view>

#include "absl/strings/str_format.h"
#include "runtime/model/counter_random.h"

namespace moed::model {
namespace {

// Written so that NaN fails.
absl::Status CheckRange(std::string_view field, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %g; it must be from %g to %g", field, value, low, high));
}

absl::Status CheckLogitBias(const SamplingParams& params, int vocab_size) {
  for (const auto& [token, bias] : params.logit_bias) {
    if (token < 0 || token >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "logit_bias names token %d; this model has tokens 0 to %d", token, vocab_size - 1));
    }
    if (absl::Status status = CheckRange("logit_bias", bias, -100, 100); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateSamplingParams(const SamplingParams& params, int vocab_size) {
  const struct {
    std::string_view field;
    double value, low, high;
  } ranges[] = {
      {"temperature", params.temperature, 0, 100},
      {"top_k", static_cast<double>(params.top_k), -1, 2147483647},
      {"top_p", params.top_p, 0, 1},
      {"min_p", params.min_p, 0, 1},
      {"repetition_penalty", params.repetition_penalty, 0.01f, 100},
      {"presence_penalty", params.presence_penalty, -2, 2},
      {"frequency_penalty", params.frequency_penalty, -2, 2},
      {"logprobs", static_cast<double>(params.logprobs), -1, kMaxLogprobs},
  };
  for (const auto& range : ranges) {
    absl::Status status = CheckRange(range.field, range.value, range.low, range.high);
    if (!status.ok()) return status;
  }
  if (params.top_p == 0) {
    return absl::InvalidArgumentError(
        "top_p is 0; it must be above 0 (temperature 0 is greedy decoding)");
  }
  return CheckLogitBias(params, vocab_size);
}

SamplerState::SamplerState(SamplingParams params, std::span<const int32_t> prompt)
    : params_(std::move(params)) {
  std::stable_sort(params_.logit_bias.begin(), params_.logit_bias.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  if (!counts_prompt()) return;
  for (int32_t token : prompt) seen_[token].in_prompt = true;
}

double SamplerState::Draw() const {
  return UniformDraw(params_.seed, static_cast<uint64_t>(num_accepted_));
}

void SamplerState::Accept(int32_t token) {
  if (counts_output()) ++seen_[token].output_count;
  ++num_accepted_;
}

}  // namespace moed::model
