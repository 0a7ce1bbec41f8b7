// Finds the checkpoint to serve, before anything of it is read: what --model names, or the demo
// model that comes with the program.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace moed::server {

// `model`, which must be a directory with config.json. If it is empty, the demo model: looked for
// in the bundle (../share/moed/models/demo beside the executable's folder), then in models/demo of
// the working directory, then of each folder above the executable (a build tree).
// NOT_FOUND, with what is missing and what to do about it.
absl::StatusOr<std::string> FindModelDirectory(const std::string& model);

}  // namespace moed::server
