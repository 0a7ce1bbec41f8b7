// What the health service says. Alive means that the process makes sense to keep; ready, that it
// can serve. Health is the engine's progress, not the existence of the process. Pure functions.
#pragma once

#include "absl/time/time.h"
#include "runtime/engine/engine.h"

namespace moed::server {

struct Health {
  bool live = false;
  bool ready = false;

  friend bool operator==(const Health&, const Health&) = default;
};

// An engine without progress for this long is stuck. A step may be long (a prompt through a model
// paged from disk), a minute is not.
inline constexpr absl::Duration kStuckAfter = absl::Seconds(60);

// `snapshot` null: the checkpoint is loading.
Health EvaluateHealth(const engine::EngineSnapshot* snapshot, absl::Time now);

}  // namespace moed::server
