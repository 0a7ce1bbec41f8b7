// Everything that serves one model, owned together: tokenizer, runtime and engine, and what the
// services tell about it. Built by LoadModel, or by tests from parts; immutable after that, the
// engine and the statistics being safe from any thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/model/generation_config.h"
#include "runtime/model/model_runner.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "server/hot_set_keeper.h"
#include "server/routing_recorder.h"
#include "server/tokenizer_bundle.h"

namespace moed::server {

// What GetModel reports beside the rest of ServedModel.
struct ModelDescription {
  std::string family;
  int64_t max_model_len = 0;
  int64_t vocab_size = 0;
  int num_layers = 0;
  std::vector<bool> moe_layers;  // [num_layers]
  int num_experts = 0;
  int experts_per_token = 0;
  int64_t hidden_size = 0;
  int64_t parameters = 0;
  int64_t active_parameters = 0;
  model::TokenCost active_cost;  // with top_k experts a layer
  model::TokenCost dense_cost;   // if every expert were used
  std::string device;
  std::string expert_format;
  int64_t expert_bytes = 0;
  double expert_stored_ratio = 1;  // expert_bytes over those of bf16
  int64_t expert_slots = 0;
  std::string expert_policy;
  int64_t dense_bytes = 0;
  int64_t kv_cache_bytes = 0;
  int64_t kv_block_tokens = 0;
  int64_t max_num_seqs = 0;
};

// Of all layers.
inline int TotalExperts(const ModelDescription& model) {
  const auto layers = std::count(model.moe_layers.begin(), model.moe_layers.end(), true);
  return static_cast<int>(layers) * model.num_experts;
}

// The part of the KV blocks in use, 0 to 1.
inline double KvUsage(const engine::EngineSnapshot& snapshot) {
  if (snapshot.kv_blocks_total == 0) return 0;
  return static_cast<double>(snapshot.kv_blocks_used) /
         static_cast<double>(snapshot.kv_blocks_total);
}

// Members go in reverse order: the engine stops before what it runs on.
struct ServedModel {
  std::string name;
  ModelDescription description;
  model::GenerationDefaults generation;
  std::unique_ptr<text::Tokenizer> tokenizer;         // null: served by token ids
  std::unique_ptr<text::ChatTemplate> chat_template;  // null: no Chat
  std::optional<TokenizerBundle> tokenizer_bundle;    // for gateways; with a tokenizer
  std::unique_ptr<RoutingRecorder> routing_recorder;  // null: --record-routing was not given
  std::unique_ptr<model::StepRunner> runner;
  // `runner`, if its expert cache can be controlled; for tasks that are posted to the engine.
  model::ModelRunner* expert_runner = nullptr;
  // What the expert cache last published; never null.
  std::function<std::shared_ptr<const model::ExpertSnapshot>()> experts;
  std::unique_ptr<engine::Engine> engine;
  std::unique_ptr<HotSetKeeper> hot_set_keeper;  // null: --hot-set-file was not given
};

}  // namespace moed::server
