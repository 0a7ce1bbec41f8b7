#include "tests/server/served_model_for_test.h"

#include <gtest/gtest.h>

namespace moed::server {

std::unique_ptr<ServedModel> DescribedModel() {
  auto model = std::make_unique<ServedModel>();
  model->name = "demo";
  ModelDescription& description = model->description;
  description.family = "qwen3_moe";
  description.max_model_len = 64;
  description.vocab_size = 2048;
  description.num_layers = 3;
  description.moe_layers = {true, false, true};
  description.num_experts = 4;
  description.experts_per_token = 2;
  description.expert_bytes = 1024;
  description.expert_slots = 4;
  description.expert_policy = "lru";
  description.kv_block_tokens = 16;
  model->experts = [] {
    auto snapshot = std::make_shared<model::ExpertSnapshot>();
    snapshot->cache.policy = "lru";
    snapshot->cache.num_slots = 4;
    snapshot->cache.layers.resize(3);
    snapshot->cache.layers[0].hits_total = 3;
    snapshot->cache.layers[2].misses_total = 5;
    snapshot->cache.layers[2].bytes_total[0] = 5 * 1024;
    snapshot->experts.tokens_total = {{1, 2, 3, 4}, {}, {5, 6, 7, 8}};
    snapshot->experts.resident = {{1, 0, 0, 1}, {}, {0, 1, 1, 0}};
    return snapshot;
  };
  return model;
}

std::unique_ptr<ServedModel> TextModel() {
  auto model = DescribedModel();
  const std::string directory = MOED_DEMO_MODEL;
  auto tokenizer = text::LoadTokenizer(directory);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  model->tokenizer = *std::move(tokenizer);
  auto chat_template = text::LoadChatTemplate(directory);
  EXPECT_TRUE(chat_template.ok()) << chat_template.status();
  model->chat_template = *std::move(chat_template);
  return model;
}

}  // namespace moed::server
