#include "tests/bench/decode_shapes.h"

#include <algorithm>
#include <iterator>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace moed {
namespace {

struct Shape {
  std::string_view name;
  int layers;
  std::string_view config;  // all but the number of layers
};

constexpr Shape kShapes[] = {
    {kDefaultShape, 48,
     R"("architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
        "hidden_size": 2048, "vocab_size": 151936, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6, "num_experts": 128, "num_experts_per_tok": 8,
        "norm_topk_prob": true, "moe_intermediate_size": 768, "tie_word_embeddings": false)"},
    {"olmoe", 16,
     R"("architectures": ["OlmoeForCausalLM"], "model_type": "olmoe",
        "hidden_size": 2048, "vocab_size": 50304, "num_attention_heads": 16,
        "num_key_value_heads": 16, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": false,
        "intermediate_size": 1024, "tie_word_embeddings": false)"},
    {"mixtral-8x7b", 32,
     R"("architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
        "hidden_size": 4096, "vocab_size": 32000, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2,
        "intermediate_size": 14336, "tie_word_embeddings": false)"},
    // Its experts and its shared expert, without the three dense layers. In place of its latent
    // attention, 64 heads that share 8 keys and values; the shared expert has a gate.
    {"deepseek-v3", 58,
     R"("architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe",
        "hidden_size": 7168, "vocab_size": 129280, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 163840,
        "rms_norm_eps": 1e-6, "num_experts": 256, "num_experts_per_tok": 8,
        "norm_topk_prob": true, "moe_intermediate_size": 2048, "qkv_bias": false,
        "shared_expert_intermediate_size": 2048, "tie_word_embeddings": false)"},
};

}  // namespace

absl::StatusOr<model::ModelConfig> ConfigOfShape(std::string_view name, int layers) {
  const Shape* shape = std::find_if(std::begin(kShapes), std::end(kShapes),
                                    [name](const Shape& known) { return known.name == name; });
  if (shape == std::end(kShapes)) {
    const auto append_name = [](std::string* out, const Shape& known) { out->append(known.name); };
    return absl::InvalidArgumentError(absl::StrCat("no shape \"", std::string(name),
                                                   "\"; known are ",
                                                   absl::StrJoin(kShapes, ", ", append_name)));
  }
  return model::ParseModelConfig(
      absl::StrCat("{\"num_hidden_layers\": ", layers > 0 ? layers : shape->layers, ", ",
                   std::string(shape->config), "}"),
      std::string(name));
}

}  // namespace moed
