// Values of command-line flags that are lists or small languages. Pure functions; INVALID_ARGUMENT
// names the value and the form it should have.
#pragma once

#include <cstdint>
#include <map>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace moed::client {

// "5,6,7". No ids for "".
absl::StatusOr<std::vector<int32_t>> ParseTokenIds(std::string_view text);

// "12=-1.5,40=100".
absl::StatusOr<std::map<int32_t, float>> ParseLogitBias(std::string_view text);

}  // namespace moed::client
