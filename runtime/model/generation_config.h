// Sampling defaults and end tokens that a checkpoint comes with.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace moed::model {

// What generation_config.json sets, for requests that say nothing themselves. As in vLLM, values
// count whether or not the file says do_sample; what it does not set is absent here, and the
// transformers default of top_k = 50 is not assumed.
struct GenerationDefaults {
  std::optional<float> temperature;
  std::optional<int> top_k;  // 0: off
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<int64_t> max_new_tokens;
  // Any of them ends a generation. From generation_config.json, else from config.json.
  std::vector<int32_t> eos_token_ids;
};

// INVALID_ARGUMENT, naming the file and the key: not JSON, or a value out of range.
absl::StatusOr<GenerationDefaults> ParseGenerationConfig(std::string_view text,
                                                         const std::string& file);

// The end tokens of a config.json (its own, or its text_config's).
absl::StatusOr<std::vector<int32_t>> ParseEosTokens(std::string_view text, const std::string& file);

}  // namespace moed::model
