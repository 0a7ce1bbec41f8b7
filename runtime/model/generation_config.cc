#include "runtime/model/generation_config.h"

#include <limits>

#include "absl/status/status.h"
#include "runtime/model/json.h"
#include "runtime/model/json_fields.h"

namespace moed::model {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

std::optional<float> OptionalNumber(JsonFields& fields, std::string_view key, NumberRange range) {
  if (!fields.Has(key)) return std::nullopt;
  return static_cast<float>(fields.Number({key}, range));
}

std::optional<int64_t> OptionalInt(JsonFields& fields, std::string_view key, IntRange range) {
  if (!fields.Has(key)) return std::nullopt;
  return fields.Int({key}, range);
}

std::vector<int32_t> ReadEosTokens(JsonFields& fields) {
  const std::vector<int64_t> ids = fields.Ints("eos_token_id", {0, kMaxInt32});
  return {ids.begin(), ids.end()};
}

}  // namespace

absl::StatusOr<GenerationDefaults> ParseGenerationConfig(std::string_view text,
                                                         const std::string& file) {
  const absl::StatusOr<nlohmann::json> json = ParseJsonObject(text, file);
  if (!json.ok()) return json.status();
  absl::Status status;
  JsonFields fields(*json, file, &status);
  GenerationDefaults defaults;
  defaults.temperature = OptionalNumber(fields, "temperature", {0, 1e4});
  defaults.top_k = OptionalInt(fields, "top_k", {0, kMaxInt32});
  defaults.top_p = OptionalNumber(fields, "top_p", {1e-6, 1});
  defaults.min_p = OptionalNumber(fields, "min_p", {0, 1});
  defaults.repetition_penalty = OptionalNumber(fields, "repetition_penalty", {1e-3, 1e3});
  defaults.max_new_tokens = OptionalInt(fields, "max_new_tokens", {1, kMaxInt32});
  defaults.eos_token_ids = ReadEosTokens(fields);
  if (!status.ok()) return status;
  return defaults;
}

absl::StatusOr<std::vector<int32_t>> ParseEosTokens(std::string_view text,
                                                    const std::string& file) {
  const absl::StatusOr<nlohmann::json> json = ParseJsonObject(text, file);
  if (!json.ok()) return json.status();
  absl::Status status;
  JsonFields top(*json, file, &status);
  JsonFields fields = top.Has("eos_token_id") ? top : top.Object("text_config");
  std::vector<int32_t> ids = ReadEosTokens(fields);
  if (!status.ok()) return status;
  return ids;
}

}  // namespace moed::model
