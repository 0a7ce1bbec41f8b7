// Fields about experts that several families share. Mistakes go to the fields' status.
#pragma once

#include <string_view>

#include "runtime/model/json_fields.h"
#include "runtime/model/model_config.h"

namespace moed::model {

// The number of experts under any of its names, `num_experts_per_tok`, and the width of an expert
// under `intermediate_key`. The router is a softmax over all experts.
void ReadExperts(JsonFields& fields, std::string_view intermediate_key, ModelConfig* config);

// Qwen: layer i has experts iff i is not in `mlp_only_layers` and (i + 1) % `decoder_sparse_step`
// is 0; else an MLP of `intermediate_size`.
void ReadSparseLayers(JsonFields& fields, ModelConfig* config);

// The keys visible to a query; 0, all, if `sliding_window` is absent.
int ReadSlidingWindow(JsonFields& fields);

}  // namespace moed::model
