// How large a model is, from its config alone: what memory plans start from and GetModel reports.
// Pure functions.
#pragma once

#include <cstdint>

#include "runtime/model/model_config.h"

namespace moed::model {

struct ModelSize {
  int64_t parameters = 0;         // a tied embedding counts once
  int64_t active_parameters = 0;  // used for one token: of the embedding one row, of experts top_k
  int64_t dense_bytes = 0;        // on the device: bf16 products, f32 norms and routers; a tied
                                  // embedding is held twice
  int num_moe_layers = 0;
  int64_t num_experts = 0;  // of all layers
};

ModelSize ComputeModelSize(const ModelConfig& config);

}  // namespace moed::model
