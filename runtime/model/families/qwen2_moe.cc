// Qwen1.5-MoE, Qwen2-57B-A14B: biased q, k, v, and a shared expert behind a sigmoid gate.
#include <string>
#include <vector>

#include "runtime/model/families/family.h"
#include "runtime/model/families/read_experts.h"

namespace moed::model {
namespace {

// `layer_types`, or every other of the first `max_window_layers` layers.
void ReadSlidingLayers(JsonFields& fields, ModelConfig* config) {
  if (!fields.Bool("use_sliding_window", false)) return;
  const int window = ReadSlidingWindow(fields);
  const int64_t window_layers = fields.Int({"max_window_layers"}, {0, 1 << 20}, 28);
  const std::vector<std::string> types = fields.Strings("layer_types");
  if (!types.empty() && types.size() != config->layers.size()) {
    fields.Fail("\"layer_types\" must have one entry for each of num_hidden_layers");
    return;
  }
  for (int i = 0; i < config->num_layers(); ++i) {
    const bool slides =
        types.empty() ? i % 2 == 0 && i < window_layers : types[i] == "sliding_attention";
    if (slides) config->layers[i].sliding_window = window;
  }
}

void ReadConfig(JsonFields& fields, ModelConfig* config) {
  ReadExperts(fields, "moe_intermediate_size", config);
  ReadSparseLayers(fields, config);
  ReadSlidingLayers(fields, config);
  config->router.normalize_topk = fields.Bool("norm_topk_prob", false);
  config->qkv_bias = fields.Bool("qkv_bias", true);
  config->shared_intermediate = fields.Int({"shared_expert_intermediate_size"}, {1, 1 << 20});
  config->shared_gate = true;
}

constexpr DenseName kNames[] = {
    {DenseRole::kSharedGate, "model.layers.{layer}.mlp.shared_expert.gate_proj.weight"},
    {DenseRole::kSharedUp, "model.layers.{layer}.mlp.shared_expert.up_proj.weight"},
    {DenseRole::kSharedDown, "model.layers.{layer}.mlp.shared_expert.down_proj.weight"},
    {DenseRole::kSharedExpertGate, "model.layers.{layer}.mlp.shared_expert_gate.weight"},
};

}  // namespace

const Family kQwen2Moe = {
    .model_type = "qwen2_moe",
    .architecture = "Qwen2MoeForCausalLM",
    .read_config = ReadConfig,
    .dense_names = kNames,
};

}  // namespace moed::model
