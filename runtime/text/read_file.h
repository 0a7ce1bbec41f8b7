// Reads the small JSON and Jinja files of a checkpoint.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace moed::text {

// The whole file. NOT_FOUND if there is none; INVALID_ARGUMENT if it is larger than 256 MiB;
// UNAVAILABLE if it cannot be read.
absl::StatusOr<std::string> ReadFile(const std::string& path);

}  // namespace moed::text
