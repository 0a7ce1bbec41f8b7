// How large a model is, from its config alone: what memory plans start from and GetModel reports.
// Pure functions.
#pragma once

#include <cstdint>

#include "runtime/model/model_config.h"

namespace moed::model {

// What one token costs in a batch of one.
struct TokenCost {
  int64_t parameters = 0;  // used, the embedding's row included
  int64_t flops = 0;  // two for each weight of a product; attention over the context not counted
  int64_t bytes = 0;  // of weights read, dense ones as the device holds them
};

struct ModelSize {
  int64_t parameters = 0;         // a tied embedding counts once
  int64_t active_parameters = 0;  // used for one token: of the embedding one row, of experts top_k
  int64_t dense_bytes = 0;        // on the device: bf16 products, f32 norms and routers; a tied
                                  // embedding is held twice
  int num_moe_layers = 0;
  int64_t num_experts = 0;  // of all layers
};

ModelSize ComputeModelSize(const ModelConfig& config);

// With `experts_used` experts in every MoE layer: top_k is the model as it is, all of them a dense
// model of the same parameters. `expert_bytes`: of one as stored.
TokenCost ComputeTokenCost(const ModelConfig& config, int experts_used, int64_t expert_bytes);

}  // namespace moed::model
