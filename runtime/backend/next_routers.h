// The routers of the layers to come, in host memory: with a layer's input and the next layer's
// router the CPU guesses which experts come next, since a layer changes its input by little.
// Immutable; any thread.
#pragma once

#include <vector>

#include "runtime/backend/dtype.h"

namespace moed::backend {

struct NextRouter {
  int layer = -1;  // whose it is; negative: no layer with a router follows
  // [experts, hidden]: for the input of this layer's router, which has this layer's norm weights.
  std::vector<BFloat16> weights;
};

// [layers]
using NextRouters = std::vector<NextRouter>;

}  // namespace moed::backend
