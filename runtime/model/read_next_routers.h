// What the CPU guesses a layer's experts with (backend/next_routers.h), from a checkpoint.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "runtime/backend/next_routers.h"
#include "runtime/model/checkpoint.h"

namespace moed::model {

// Takes two bytes a router weight. The errors of reading the routers and their norms.
absl::StatusOr<std::shared_ptr<const backend::NextRouters>> ReadNextRouters(
    const Checkpoint& checkpoint);

}  // namespace moed::model
