// What a model runner says to one prompt, a token a step: for tests that compare runners.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/model/model_runner.h"

namespace moed::testing {

// The `count` most likely tokens after `prompt`; fewer, with the test failed, if a step fails.
// REQUIRES: prompt and tokens fit into four KV blocks.
std::vector<int32_t> GreedyTokens(model::ModelRunner& runner, const std::vector<int32_t>& prompt,
                                  int count);

}  // namespace moed::testing
