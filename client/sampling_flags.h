// The flags of sampling and stopping, the same for every subcommand that generates.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/moed/v1/inference.pb.h"

namespace moed::client {

// A flag that is not given leaves its field unset, so that the server's default holds.
struct SamplingFlags {
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::optional<uint64_t> seed;
  std::string logit_bias;
  std::optional<int32_t> logprobs;
  std::optional<int32_t> prompt_logprobs;

  std::optional<int64_t> max_tokens;
  std::optional<int64_t> min_tokens;
  std::vector<std::string> stop;
  std::string stop_token_ids;
  bool ignore_eos = false;
  bool include_stop_text = false;

  // The flags stay bound to this object.
  void AddTo(CLI::App& command);
  // INVALID_ARGUMENT for a list that cannot be read.
  absl::Status Fill(v1::SamplingParams& sampling, v1::StopConditions& stopping) const;
};

}  // namespace moed::client
