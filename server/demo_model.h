// Finds the checkpoint that comes with the program, for a start without --model.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace moed::server {

// Looks in the bundle (../share/moed/models/demo beside the executable's folder), then in
// models/demo of the working directory, then of each folder above the executable (a build tree).
// NOT_FOUND, naming --model, if it is nowhere.
absl::StatusOr<std::string> FindDemoModel();

}  // namespace moed::server
