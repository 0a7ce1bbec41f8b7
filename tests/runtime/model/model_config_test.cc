#include "runtime/model/model_config.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace moed::model {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

const json kQwen3 = json::parse(R"({
  "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 64,
  "vocab_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
  "head_dim": 32, "max_position_embeddings": 4096, "intermediate_size": 96, "num_experts": 8,
  "num_experts_per_tok": 2, "moe_intermediate_size": 16, "rope_theta": 1e6})");
const json kQwen2 = json::parse(R"({
  "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "hidden_size": 64,
  "vocab_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
  "max_position_embeddings": 4096, "num_experts": 8, "num_experts_per_tok": 2,
  "moe_intermediate_size": 16, "shared_expert_intermediate_size": 40})");
const json kMixtral = json::parse(R"({
  "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 64,
  "vocab_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "max_position_embeddings": 4096, "intermediate_size": 32, "num_local_experts": 4,
  "num_experts_per_tok": 2})");
const json kOlmoe = json::parse(R"({
  "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "hidden_size": 64,
  "vocab_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
  "max_position_embeddings": 4096, "intermediate_size": 16, "num_experts": 8,
  "num_experts_per_tok": 2})");

// `base` with the fields of `changes` in place of its own.
absl::StatusOr<ModelConfig> Parse(json base, const char* changes = "{}") {
  base.update(json::parse(changes));
  return ParseModelConfig(base.dump(), "dir/config.json");
}

ModelConfig MustParse(const json& base, const char* changes = "{}") {
  absl::StatusOr<ModelConfig> config = Parse(base, changes);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig();
}

std::string ErrorOf(const json& base, const char* changes) {
  const absl::Status status = Parse(base, changes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << changes;
  return std::string(status.message());
}

TEST(ModelConfigTest, Qwen3MoeDefaults) {
  const ModelConfig config = MustParse(kQwen3);
  EXPECT_EQ(config.family, "qwen3_moe");
  EXPECT_EQ(config.head_dim, 32);
  EXPECT_EQ(config.kv_heads, 2);
  EXPECT_EQ(config.norm_epsilon, 1e-6f);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_FALSE(config.output_bias);
  EXPECT_EQ(config.qk_norm, ModelConfig::QkNorm::kPerHead);
  EXPECT_FALSE(config.tie_embeddings);
  EXPECT_EQ(config.rope.theta, 1e6);
  EXPECT_EQ(config.rope.rotary_dims, 32);
  EXPECT_EQ(config.num_moe_layers(), 4);
  EXPECT_EQ(config.expert_intermediate, 16);
  EXPECT_EQ(config.router.num_experts, 8);
  EXPECT_EQ(config.router.top_k, 2);
  EXPECT_FALSE(config.router.normalize_topk);
  EXPECT_EQ(config.shared_intermediate, 0);
}

TEST(ModelConfigTest, Qwen3MoeFlags) {
  const ModelConfig config = MustParse(kQwen3, R"({"norm_topk_prob": true, "attention_bias": true,
      "tie_word_embeddings": true, "use_sliding_window": true, "sliding_window": 128})");
  EXPECT_TRUE(config.router.normalize_topk);
  EXPECT_TRUE(config.qkv_bias);
  EXPECT_TRUE(config.output_bias);
  EXPECT_TRUE(config.tie_embeddings);
  EXPECT_EQ(config.layers[3].sliding_window, 128);
}

TEST(ModelConfigTest, ASlidingWindowThatIsNotUsedIsIgnored) {
  EXPECT_EQ(MustParse(kQwen3, R"({"sliding_window": 128})").layers[0].sliding_window, 0);
}

TEST(ModelConfigTest, SparseStepAndMlpOnlyLayersMakeDenseLayers) {
  const ModelConfig config =
      MustParse(kQwen3, R"({"decoder_sparse_step": 2, "mlp_only_layers": [3, 77]})");
  EXPECT_FALSE(config.layers[0].is_moe);
  EXPECT_EQ(config.layers[0].dense_intermediate, 96);
  EXPECT_TRUE(config.layers[1].is_moe);
  EXPECT_FALSE(config.layers[2].is_moe);
  EXPECT_FALSE(config.layers[3].is_moe);
}

TEST(ModelConfigTest, Qwen2MoeHasBiasesAndASharedExpert) {
  const ModelConfig config = MustParse(kQwen2);
  EXPECT_TRUE(config.qkv_bias);
  EXPECT_FALSE(config.output_bias);
  EXPECT_EQ(config.qk_norm, ModelConfig::QkNorm::kNone);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.shared_intermediate, 40);
  EXPECT_TRUE(config.shared_gate);
  EXPECT_FALSE(MustParse(kQwen2, R"({"qkv_bias": false})").qkv_bias);
}

TEST(ModelConfigTest, Qwen2MoeWindowsSomeLayers) {
  const auto windows = [](const char* changes) {
    std::vector<int> all;
    for (const LayerConfig& layer : MustParse(kQwen2, changes).layers) {
      all.push_back(layer.sliding_window);
    }
    return all;
  };
  EXPECT_EQ(windows(R"({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 2})"),
            (std::vector<int>{9, 0, 0, 0}));
  EXPECT_EQ(windows(R"({"use_sliding_window": true, "sliding_window": 9})"),
            (std::vector<int>{9, 0, 9, 0}));
  EXPECT_EQ(windows(R"({"use_sliding_window": true, "sliding_window": 9, "layer_types":
      ["full_attention", "sliding_attention", "full_attention", "full_attention"]})"),
            (std::vector<int>{0, 9, 0, 0}));
  EXPECT_EQ(windows(R"({"sliding_window": 9})"), (std::vector<int>{0, 0, 0, 0}));
}

TEST(ModelConfigTest, MixtralAlwaysNormalizes) {
  const ModelConfig config = MustParse(kMixtral);
  EXPECT_TRUE(config.router.normalize_topk);
  EXPECT_EQ(config.expert_intermediate, 32);
  EXPECT_EQ(config.norm_epsilon, 1e-5f);
  EXPECT_EQ(config.rope.theta, 1e6);
  EXPECT_EQ(config.layers[1].sliding_window, 0);
  EXPECT_EQ(MustParse(kMixtral, R"({"sliding_window": 4096})").layers[1].sliding_window, 4096);
}

TEST(ModelConfigTest, OlmoeNormsTheWholeWidthAndClips) {
  const ModelConfig config = MustParse(kOlmoe, R"({"clip_qkv": 8.0})");
  EXPECT_EQ(config.qk_norm, ModelConfig::QkNorm::kFullWidth);
  EXPECT_EQ(config.clip_qkv, 8.0f);
  EXPECT_EQ(config.kv_heads, 4);
  EXPECT_EQ(config.rope.theta, 10000);
  EXPECT_EQ(MustParse(kOlmoe, R"({"clip_qkv": null})").clip_qkv, 0);
}

TEST(ModelConfigTest, SpellingsOfTransformers4And5AreTheSame) {
  const ModelConfig four = MustParse(kMixtral, R"({"torch_dtype": "bfloat16", "rope_theta": 5e5,
      "rope_scaling": {"type": "linear", "factor": 2.0}})");
  const ModelConfig five = MustParse(kMixtral, R"({"dtype": "bfloat16", "rope_parameters":
      {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}})");
  for (const ModelConfig& config : {four, five}) {
    EXPECT_EQ(config.rope.type, RopeType::kLinear);
    EXPECT_EQ(config.rope.theta, 5e5);
    EXPECT_EQ(config.rope.factor, 2);
  }
}

TEST(ModelConfigTest, RopeParametersMayBeGivenByLayerTypeIfTheyAgree) {
  EXPECT_EQ(MustParse(kQwen3, R"({"rope_theta": null, "rope_parameters": {
      "full_attention": {"rope_theta": 7e4}, "sliding_attention": {"rope_theta": 7e4}}})")
                .rope.theta,
            7e4);
  EXPECT_THAT(ErrorOf(kQwen3, R"({"rope_parameters": {"full_attention": {"rope_theta": 7e4},
      "sliding_attention": {"rope_theta": 1e4}}})"),
              HasSubstr("layer type"));
}

TEST(ModelConfigTest, PartialRotaryFactorCutsTheRotatedDimensions) {
  EXPECT_EQ(MustParse(kQwen3, R"({"partial_rotary_factor": 0.25})").rope.rotary_dims, 8);
  EXPECT_THAT(ErrorOf(kQwen3, R"({"head_dim": 30, "partial_rotary_factor": 0.5})"),
              HasSubstr("even"));
}

TEST(ModelConfigTest, Llama3Scaling) {
  const RopeConfig rope = MustParse(kQwen3, R"({"rope_scaling": {"rope_type": "llama3",
      "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
      "original_max_position_embeddings": 512}})")
                              .rope;
  EXPECT_EQ(rope.type, RopeType::kLlama3);
  EXPECT_EQ(rope.original_max_positions, 512);
  EXPECT_THAT(ErrorOf(kQwen3, R"({"rope_scaling": {"rope_type": "llama3", "factor": 8}})"),
              HasSubstr("rope_scaling.low_freq_factor"));
}

TEST(ModelConfigTest, YarnResolvesItsAttentionFactorAndStretchesTheContext) {
  const ModelConfig config = MustParse(kQwen3, R"({"rope_scaling": {"type": "yarn", "factor": 4.0,
      "original_max_position_embeddings": 2048}})");
  EXPECT_EQ(config.rope.type, RopeType::kYarn);
  EXPECT_NEAR(config.rope.attention_factor, 1.138629436, 1e-9);
  EXPECT_EQ(config.max_positions, 8192);

  const auto factor = [](const char* changes) {
    return MustParse(kQwen3, changes).rope.attention_factor;
  };
  EXPECT_EQ(factor(R"({"rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": 1.5}})"),
            1.5);
  EXPECT_NEAR(factor(R"({"rope_scaling": {"type": "yarn", "factor": 40, "mscale": 1.0,
                                          "mscale_all_dim": 0.707}})"),
              1.0857263992561355, 1e-12);
}

TEST(ModelConfigTest, UnknownRopeTypesNameTheKnown) {
  EXPECT_THAT(ErrorOf(kQwen3, R"({"rope_scaling": {"type": "longrope", "factor": 4}})"),
              HasSubstr("yarn"));
}

TEST(ModelConfigTest, ExpertCountHasManyNames) {
  for (const char* name : {"num_local_experts", "n_routed_experts", "moe_num_experts"}) {
    json config = kQwen3;
    config.erase("num_experts");
    config[name] = 5;
    EXPECT_EQ(MustParse(config).router.num_experts, 5) << name;
  }
}

TEST(ModelConfigTest, HeadDimOfNullIsDerived) {
  EXPECT_EQ(MustParse(kQwen3, R"({"head_dim": null})").head_dim, 16);
  EXPECT_THAT(ErrorOf(kQwen3, R"({"head_dim": null, "hidden_size": 66})"), HasSubstr("head_dim"));
}

TEST(ModelConfigTest, ALanguageModelMayBeNested) {
  json outer = {{"architectures", {"SomethingForConditionalGeneration"}}, {"text_config", kQwen3}};
  EXPECT_EQ(MustParse(outer).hidden, 64);
}

TEST(ModelConfigTest, ModelTypeCountsIfTheArchitectureIsUnknownOrAbsent) {
  EXPECT_EQ(MustParse(kQwen3, R"({"architectures": null})").family, "qwen3_moe");
  EXPECT_EQ(MustParse(kQwen3, R"({"architectures": []})").family, "qwen3_moe");
}

TEST(ModelConfigTest, AnUnknownFamilyNamesTheKnown) {
  const std::string error =
      ErrorOf(kQwen3, R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})");
  EXPECT_THAT(error, HasSubstr("LlamaForCausalLM"));
  EXPECT_THAT(error, HasSubstr("qwen3_moe, qwen2_moe, mixtral, olmoe"));
}

TEST(ModelConfigTest, EveryNeededKeyIsNamedWithItsFileIfAbsent) {
  for (const char* key :
       {"hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "num_experts", "num_experts_per_tok", "moe_intermediate_size"}) {
    json config = kQwen3;
    config.erase(key);
    const std::string error = ErrorOf(config, "{}");
    EXPECT_THAT(error, HasSubstr(key));
    EXPECT_THAT(error, HasSubstr("dir/config.json"));
  }
}

TEST(ModelConfigTest, WhatWeCannotRunIsRefused) {
  EXPECT_THAT(ErrorOf(kQwen3, R"({"hidden_act": "gelu"})"), HasSubstr("gelu"));
  EXPECT_THAT(ErrorOf(kQwen3, R"({"quantization_config": {"quant_method": "fp8"}})"),
              HasSubstr("quantiz"));
  EXPECT_THAT(ErrorOf(kQwen3, R"({"mlp_only_layers": [0, 1, 2, 3]})"), HasSubstr("experts"));
}

TEST(ModelConfigTest, SizesThatDoNotFitTogetherAreRefused) {
  EXPECT_THAT(ErrorOf(kQwen3, R"({"num_key_value_heads": 3})"), HasSubstr("num_key_value_heads"));
  EXPECT_THAT(ErrorOf(kQwen3, R"({"num_experts_per_tok": 9})"), HasSubstr("from 1 to 8"));
  EXPECT_THAT(ErrorOf(kQwen3, R"({"hidden_size": 262144, "moe_intermediate_size": 1048576,
                                  "num_experts": 8192, "num_hidden_layers": 1024})"),
              HasSubstr("bytes of experts"));
}

// Each number of a config at each value that no honest config has.
TEST(ModelConfigTest, EveryNumberIsChecked) {
  for (const char* key :
       {"hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "num_experts",
        "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step", "rms_norm_eps",
        "rope_theta", "partial_rotary_factor"}) {
    for (const char* value : {"-1", "0", "1e300", "9223372036854775808", "18446744073709551616",
                              "-9223372036854775808", "\"64\"", "[64]", "{}", "true"}) {
      const std::string changes = std::string("{\"") + key + "\": " + value + "}";
      EXPECT_THAT(ErrorOf(kQwen3, changes.c_str()), HasSubstr(key)) << changes;
    }
  }
  EXPECT_THAT(ErrorOf(kQwen3, R"({"hidden_size": 64.0})"), HasSubstr("hidden_size"));
  EXPECT_FALSE(ParseModelConfig(R"({"hidden_size": NaN})", "c").ok());
}

TEST(ModelConfigTest, WrongTypesAreRefused) {
  for (const char* changes :
       {R"({"tie_word_embeddings": 1})", R"({"mlp_only_layers": "0"})",
        R"({"mlp_only_layers": [0.5]})", R"({"architectures": "Qwen3MoeForCausalLM"})",
        R"({"architectures": [1]})", R"({"rope_scaling": [1]})", R"({"text_config": 1})",
        R"({"rope_scaling": {"type": 1}})", R"({"hidden_act": 1})"}) {
    ErrorOf(kQwen3, changes);
  }
  EXPECT_FALSE(ParseModelConfig("[]", "c").ok());
}

}  // namespace
}  // namespace moed::model
