#include "server/translate_vllm_response.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace moed::server {
namespace {

// Their fields are 32-bit; a larger count is shown as the largest.
int32_t Clamp(int64_t value) {
  return static_cast<int32_t>(std::min<int64_t>(value, std::numeric_limits<int32_t>::max()));
}

// As people write it: 0.8f is 0.8, not 0.800000012.
double Shortest(float value) {
  double shortest = 0;
  return absl::SimpleAtod(absl::StrCat(value), &shortest) ? shortest : value;
}

std::string DefaultsAsJson(const model::GenerationDefaults& defaults) {
  nlohmann::json json = nlohmann::json::object();
  if (defaults.temperature) json["temperature"] = Shortest(*defaults.temperature);
  if (defaults.top_k) json["top_k"] = *defaults.top_k;
  if (defaults.top_p) json["top_p"] = Shortest(*defaults.top_p);
  if (defaults.min_p) json["min_p"] = Shortest(*defaults.min_p);
  if (defaults.repetition_penalty) {
    json["repetition_penalty"] = Shortest(*defaults.repetition_penalty);
  }
  if (defaults.max_new_tokens) json["max_tokens"] = *defaults.max_new_tokens;
  return json.empty() ? "" : json.dump();
}

}  // namespace

void FillModelInfo(const ServedModel& model, vllm::grpc::engine::GetModelInfoResponse* message) {
  const ModelDescription& description = model.description;
  message->set_model_path(model.name);
  message->set_served_model_name(model.name);
  message->set_is_generation(true);
  message->set_max_context_length(static_cast<uint32_t>(Clamp(description.max_model_len)));
  message->set_max_req_input_len(Clamp(description.max_model_len - 1));
  message->set_vocab_size(static_cast<uint32_t>(Clamp(description.vocab_size)));
  message->set_model_type(description.family);
  for (int32_t id : model.generation.eos_token_ids) message->add_eos_token_ids(id);
  message->set_default_sampling_params_json(DefaultsAsJson(model.generation));
}

void FillServerInfo(const ServedModel& model, const engine::EngineSnapshot& snapshot,
                    double uptime_seconds, vllm::grpc::engine::GetServerInfoResponse* message) {
  message->set_active_requests(static_cast<uint32_t>(Clamp(snapshot.running + snapshot.waiting)));
  message->set_uptime_seconds(uptime_seconds);
  message->set_server_type("moed");
  message->set_data_parallel_size(1);
  message->set_kv_cache_dtype("bfloat16");
  message->set_block_size(Clamp(model.description.kv_block_tokens));
  message->set_model_dtype("bfloat16");
}

void FillLoads(const ServedModel& model, const engine::EngineSnapshot& snapshot, absl::Time now,
               vllm::grpc::engine::GetLoadsResponse* message) {
  message->set_timestamp(absl::FormatTime(absl::RFC3339_sec, now, absl::UTCTimeZone()));
  message->set_version(MOED_VERSION);
  message->set_dp_rank_count(1);
  vllm::grpc::engine::SchedulerLoad* load = message->add_loads();
  const ModelDescription& description = model.description;
  load->set_num_running_reqs(Clamp(snapshot.running));
  load->set_num_waiting_reqs(Clamp(snapshot.waiting));
  load->set_num_total_reqs(Clamp(snapshot.running + snapshot.waiting));
  load->set_num_used_tokens(Clamp(snapshot.kv_blocks_used * description.kv_block_tokens));
  load->set_max_total_num_tokens(Clamp(snapshot.kv_blocks_total * description.kv_block_tokens));
  load->set_token_usage(KvUsage(snapshot));
  load->set_max_running_requests(Clamp(description.max_num_seqs));
  if (description.max_num_seqs > 0) {
    load->set_utilization(static_cast<double>(snapshot.running) /
                          static_cast<double>(description.max_num_seqs));
  }
}

}  // namespace moed::server
