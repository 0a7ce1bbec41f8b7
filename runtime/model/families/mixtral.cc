// Mixtral 8x7B and 8x22B: every layer has experts, whose chosen weights always add up to 1.
#include "runtime/model/families/family.h"
#include "runtime/model/families/read_experts.h"

namespace moed::model {
namespace {

void ReadConfig(JsonFields& fields, ModelConfig* config) {
  ReadExperts(fields, "intermediate_size", config);
  config->router.normalize_topk = true;
  for (LayerConfig& layer : config->layers) layer.sliding_window = ReadSlidingWindow(fields);
}

constexpr DenseName kNames[] = {
    {DenseRole::kRouter, "model.layers.{layer}.block_sparse_moe.gate.weight"},
};

constexpr ExpertNames kExperts[] = {
    {.gate = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
     .up = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
     .down = "model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
     .all_gate_up = "model.layers.{layer}.block_sparse_moe.experts.gate_up_proj",
     .all_down = "model.layers.{layer}.block_sparse_moe.experts.down_proj"},
};

}  // namespace

const Family kMixtral = {
    .model_type = "mixtral",
    .architecture = "MixtralForCausalLM",
    .default_rope_theta = 1e6,
    .default_norm_epsilon = 1e-5,
    .read_config = ReadConfig,
    .dense_names = kNames,
    .expert_names = kExperts,
};

}  // namespace moed::model
