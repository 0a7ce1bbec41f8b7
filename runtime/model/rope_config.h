// Reads how a config.json wants positions rotated, in the spellings of transformers 4 and 5.
#pragma once

#include <cstdint>

#include "runtime/model/json_fields.h"
#include "runtime/model/model_config.h"

namespace moed::model {

// `rope_parameters` (one dict, or one per layer type if they agree), or `rope_theta` with
// `rope_scaling`; the type under `rope_type` or `type`. Mistakes go to `config`'s status.
// Types other than default, linear, llama3 and yarn are INVALID_ARGUMENT.
RopeConfig ReadRopeConfig(JsonFields& config, int head_dim, int64_t max_positions,
                          double default_theta);

}  // namespace moed::model
