// Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder: norms on each head of q and k, no shared expert.
#include "runtime/model/families/family.h"
#include "runtime/model/families/read_experts.h"

namespace moed::model {
namespace {

void ReadConfig(JsonFields& fields, ModelConfig* config) {
  ReadExperts(fields, "moe_intermediate_size", config);
  ReadSparseLayers(fields, config);
  config->router.normalize_topk = fields.Bool("norm_topk_prob", false);
  config->qk_norm = ModelConfig::QkNorm::kPerHead;
  config->qkv_bias = config->output_bias = fields.Bool("attention_bias", false);
  if (fields.Bool("use_sliding_window", false)) {
    for (LayerConfig& layer : config->layers) layer.sliding_window = ReadSlidingWindow(fields);
  }
}

}  // namespace

const Family kQwen3Moe = {
    .model_type = "qwen3_moe",
    .architecture = "Qwen3MoeForCausalLM",
    .read_config = ReadConfig,
};

}  // namespace moed::model
