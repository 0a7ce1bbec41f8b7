// The models whose shapes the decode benchmark knows, by name: sizes as their config.json gives
// them. Pure functions.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/model/model_config.h"

namespace moed {

inline constexpr char kDefaultShape[] = "qwen3-30b-a3b";

// With `layers` layers, 0: as many as the model has that the benchmark can build.
// INVALID_ARGUMENT: an unknown name; the message lists the known ones.
absl::StatusOr<model::ModelConfig> ConfigOfShape(std::string_view name, int layers);

}  // namespace moed
