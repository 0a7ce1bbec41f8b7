// Strict JSON for files that strangers wrote: what the parser lets through but no honest writer
// makes (a key twice in one object, nesting without end) is an error. Pure functions; any thread.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace moed::model {

inline constexpr int kMaxJsonDepth = 64;

// The value of `text`. INVALID_ARGUMENT, naming `source` (a file) and the place, if it is not JSON
// in UTF-8, nests deeper than kMaxJsonDepth, or has an object with one key twice.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const std::string& source);
// The same, and INVALID_ARGUMENT if the value is no object.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, const std::string& source);

}  // namespace moed::model
