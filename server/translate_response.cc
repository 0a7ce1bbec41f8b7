#include "server/translate_response.h"

#include <algorithm>
#include <numeric>

namespace moed::server {
namespace {

void FillTop(std::span<const model::TokenLogprob> top,
             google::protobuf::RepeatedPtrField<v1::TokenLogprob>* messages) {
  for (const model::TokenLogprob& alternative : top) {
    v1::TokenLogprob* message = messages->Add();
    message->set_id(alternative.id);
    message->set_logprob(alternative.logprob);
  }
}

v1::FinishReason ToWire(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case engine::FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case engine::FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

void FillDefaults(const model::GenerationDefaults& defaults, v1::SamplingParams* message) {
  if (defaults.temperature) message->set_temperature(*defaults.temperature);
  if (defaults.top_k) message->set_top_k(*defaults.top_k);
  if (defaults.top_p) message->set_top_p(*defaults.top_p);
  if (defaults.min_p) message->set_min_p(*defaults.min_p);
  if (defaults.repetition_penalty) message->set_repetition_penalty(*defaults.repetition_penalty);
}

void FillLayer(const cache::LayerStats& stats, v1::LayerStats* message) {
  message->set_hits_total(stats.hits_total);
  message->set_misses_total(stats.misses_total);
  message->set_evictions_total(stats.evictions_total);
  message->set_admissions_total(stats.admissions_total);
  message->set_bytes_paged_total(
      std::accumulate(stats.bytes_total.begin(), stats.bytes_total.end(), int64_t{0}));
  message->set_stall_seconds_total(stats.stall_seconds_total);
  message->set_tokens_total(stats.tokens_total);
  message->set_resident(stats.resident);
  message->set_slots_floor(stats.floor);
}

void FillBalance(int layer, const cache::LayerBalance& balance, bool per_expert,
                 v1::LayerBalance* message) {
  message->set_layer(layer);
  message->set_auxiliary_loss(balance.auxiliary_loss);
  message->set_imbalance(balance.imbalance);
  message->set_dead_experts(balance.dead_experts);
  if (!per_expert) return;
  message->mutable_probability()->Add(balance.probability.begin(), balance.probability.end());
  message->mutable_token_share()->Add(balance.token_share.begin(), balance.token_share.end());
}

void FillCost(const model::TokenCost& cost, v1::ModelCost* message) {
  message->set_parameters(cost.parameters);
  message->set_flops_per_token(cost.flops);
  message->set_bytes_per_token(cost.bytes);
}

}  // namespace

void AppendTokens(std::span<const engine::TokenWithLogprobs> tokens, bool with_logprobs,
                  google::protobuf::RepeatedPtrField<v1::Token>* messages) {
  for (const engine::TokenWithLogprobs& token : tokens) {
    v1::Token* wire = messages->Add();
    wire->set_id(token.id);
    if (!with_logprobs) continue;
    wire->set_logprob(token.logprob);
    FillTop(token.top, wire->mutable_top());
  }
}

void FillPromptLogprobs(int32_t first_token,
                        std::span<const std::vector<model::TokenLogprob>> logprobs,
                        v1::PromptLogprobs* message) {
  message->add_tokens()->set_id(first_token);
  for (const std::vector<model::TokenLogprob>& entry : logprobs) {
    if (entry.empty()) continue;
    v1::PromptToken* token = message->add_tokens();
    token->set_id(entry.front().id);
    token->set_logprob(entry.front().logprob);
    FillTop(std::span(entry).subspan(1), token->mutable_top());
  }
}

void FillSequenceFinish(const engine::SequenceFinish& finish, v1::SequenceFinish* message) {
  message->set_index(finish.index);
  message->set_reason(ToWire(finish.reason));
  if (finish.matched_stop) message->set_matched_stop(*finish.matched_stop);
  if (finish.matched_token) message->set_matched_token_id(*finish.matched_token);
}

void FillUsage(const engine::Usage& usage, v1::Usage* message) {
  message->set_prompt_tokens(usage.prompt_tokens);
  message->set_completion_tokens(usage.completion_tokens);
  message->set_cached_tokens(usage.cached_tokens);
  message->set_time_to_first_token_seconds(usage.time_to_first_token_seconds);
  message->set_queue_seconds(usage.queue_seconds);
  v1::ExpertUsage* experts = message->mutable_experts();
  experts->set_hits(usage.experts.hits);
  experts->set_misses(usage.experts.misses);
  experts->set_bytes_paged(usage.experts.bytes_paged);
  experts->set_stall_seconds(usage.experts.stall_seconds);
}

void FillModel(const ServedModel& model, v1::GetModelResponse* message) {
  const ModelDescription& description = model.description;
  message->set_model(model.name);
  message->set_family(description.family);
  message->set_max_model_len(description.max_model_len);
  message->set_vocab_size(description.vocab_size);
  message->set_num_layers(description.num_layers);
  message->set_num_moe_layers(static_cast<int>(
      std::count(description.moe_layers.begin(), description.moe_layers.end(), true)));
  message->set_num_experts(description.num_experts);
  message->set_experts_per_token(description.experts_per_token);
  message->set_hidden_size(description.hidden_size);
  message->set_parameters(description.parameters);
  message->set_active_parameters(description.active_parameters);
  message->set_device(description.device);
  message->set_expert_format(description.expert_format);
  message->set_expert_bytes(description.expert_bytes);
  message->set_expert_stored_ratio(description.expert_stored_ratio);
  message->set_expert_slots(description.expert_slots);
  message->set_expert_policy(description.expert_policy);
  message->set_has_tokenizer(model.tokenizer != nullptr);
  message->set_has_chat_template(model.chat_template != nullptr);
  message->mutable_eos_token_ids()->Add(model.generation.eos_token_ids.begin(),
                                        model.generation.eos_token_ids.end());
  FillDefaults(model.generation, message->mutable_default_sampling());
  message->set_server_version(MOED_VERSION);
  message->set_dense_bytes(description.dense_bytes);
  message->set_kv_cache_bytes(description.kv_cache_bytes);
  message->set_max_num_seqs(description.max_num_seqs);
  FillCost(description.active_cost, message->mutable_active_cost());
  FillCost(description.dense_cost, message->mutable_dense_cost());
}

void FillExpertStats(const ServedModel& model, const model::ExpertSnapshot& snapshot,
                     bool per_expert, v1::ExpertStats* message) {
  const cache::CacheStats& stats = snapshot.cache;
  const cache::ExpertStats& experts = snapshot.experts;
  message->set_model(model.name);
  message->set_policy(stats.policy);
  message->set_slots(stats.num_slots);
  message->set_max_slots(snapshot.max_slots);
  message->set_budget_bytes(int64_t{stats.num_slots} * model.description.expert_bytes);
  message->set_expert_bytes(model.description.expert_bytes);
  for (size_t layer = 0; layer < stats.layers.size(); ++layer) {
    if (!model.description.moe_layers[layer]) continue;
    v1::LayerStats* wire = message->add_layers();
    wire->set_layer(static_cast<int32_t>(layer));
    FillLayer(stats.layers[layer], wire);
    if (layer < snapshot.balance->size()) {
      FillBalance(static_cast<int>(layer), (*snapshot.balance)[layer], per_expert,
                  message->add_balance());
    }
    if (!per_expert || layer >= experts.tokens_total.size()) continue;
    wire->mutable_expert_tokens_total()->Add(experts.tokens_total[layer].begin(),
                                             experts.tokens_total[layer].end());
    wire->mutable_expert_resident()->Add(experts.resident[layer].begin(),
                                         experts.resident[layer].end());
  }
}

void FillServingStats(const engine::EngineSnapshot& snapshot, double uptime_seconds,
                      v1::ServingStats* message) {
  message->set_running(snapshot.running);
  message->set_waiting(snapshot.waiting);
  message->set_kv_usage(KvUsage(snapshot));
  message->set_prompt_tokens_total(snapshot.prompt_tokens_total);
  message->set_generation_tokens_total(snapshot.generation_tokens_total);
  message->set_steps_total(snapshot.steps_total);
  message->set_uptime_seconds(uptime_seconds);
}

}  // namespace moed::server
