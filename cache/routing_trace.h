// What the routers chose in one step: plain data between the model, the statistics and the
// simulator. Whoever runs the step fills it.
#pragma once

#include <cstdint>
#include <vector>

namespace moed::cache {

// One expert's share of a step in one layer.
struct ExpertLoad {
  int32_t expert = 0;
  // Tokens of the step that the router sent to this expert; at least 1.
  int32_t tokens = 0;
  // Sum over those tokens of 1 / (tokens of the token's own sequence in this step). A sequence so
  // weighs the same in a step whether it decodes one token or prefills thousands, and a long prompt
  // cannot drown what the decoding sequences need. In a step of decodes alone it equals `tokens`.
  float weight = 0;
};

struct LayerRouting {
  int32_t layer = 0;
  std::vector<ExpertLoad> experts;  // distinct, in any order
};

struct RoutingTrace {
  std::vector<LayerRouting> layers;  // distinct, only layers that have a router
};

}  // namespace moed::cache
