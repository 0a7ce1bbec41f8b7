#include "runtime/model/model_size.h"

#include "gtest/gtest.h"

namespace moed::model {
namespace {

// Qwen3-30B-A3B as published: 30.5 billion parameters, 3.3 billion active.
ModelConfig Qwen3() {
  ModelConfig config;
  config.hidden = 2048;
  config.vocab_size = 151936;
  config.query_heads = 32;
  config.kv_heads = 4;
  config.head_dim = 128;
  config.qk_norm = ModelConfig::QkNorm::kPerHead;
  config.layers.resize(48);
  config.expert_intermediate = 768;
  config.router.num_experts = 128;
  config.router.top_k = 8;
  return config;
}

TEST(ModelSizeTest, AgreesWithPublishedParameterCounts) {
  const ModelSize size = ComputeModelSize(Qwen3());
  EXPECT_EQ(size.parameters, 30532122624);
  // Of the embedding, which that count has whole, one row is used.
  EXPECT_EQ(size.active_parameters, 3353032704 - int64_t{151936} * 2048 + 2048);
  EXPECT_EQ(size.num_moe_layers, 48);
  EXPECT_EQ(size.num_experts, 48 * 128);
}

TEST(ModelSizeTest, CountsEveryOptionalTensor) {
  ModelConfig config = Qwen3();
  config.layers.resize(1);
  const int64_t plain = ComputeModelSize(config).parameters;
  config.qkv_bias = true;
  config.output_bias = true;
  config.shared_intermediate = 10;
  config.shared_gate = true;
  const int64_t biases = 32 * 128 + 2 * 4 * 128 + 2048;
  EXPECT_EQ(ComputeModelSize(config).parameters - plain, biases + 3 * 2048 * 10 + 2048);
  config.layers.push_back({.is_moe = false, .dense_intermediate = 100});
  const ModelSize two = ComputeModelSize(config);
  EXPECT_EQ(two.num_experts, 128);
  config.tie_embeddings = true;
  EXPECT_EQ(two.parameters - ComputeModelSize(config).parameters, int64_t{151936} * 2048);
  EXPECT_EQ(two.dense_bytes, ComputeModelSize(config).dense_bytes);
}

}  // namespace
}  // namespace moed::model
