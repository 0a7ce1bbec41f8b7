#include "server/health.h"

namespace moed::server {

Health EvaluateHealth(const engine::EngineSnapshot* snapshot, absl::Time now) {
  if (snapshot == nullptr) return {.live = true, .ready = false};
  const bool stuck = now - snapshot->last_progress > kStuckAfter;
  const bool live = !snapshot->failed && !stuck;
  return {.live = live, .ready = live};
}

}  // namespace moed::server
