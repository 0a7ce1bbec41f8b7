// OLMoE-1B-7B: norms over the whole of q and k, which are then clipped.
#include "runtime/model/families/family.h"
#include "runtime/model/families/read_experts.h"

namespace moed::model {
namespace {

void ReadConfig(JsonFields& fields, ModelConfig* config) {
  ReadExperts(fields, "intermediate_size", config);
  config->router.normalize_topk = fields.Bool("norm_topk_prob", false);
  config->qk_norm = ModelConfig::QkNorm::kFullWidth;
  config->qkv_bias = config->output_bias = fields.Bool("attention_bias", false);
  config->clip_qkv = static_cast<float>(fields.Number({"clip_qkv"}, {1e-6, 1e6}, 0));
}

}  // namespace

const Family kOlmoe = {
    .model_type = "olmoe",
    .architecture = "OlmoeForCausalLM",
    .default_norm_epsilon = 1e-5,
    .read_config = ReadConfig,
};

}  // namespace moed::model
