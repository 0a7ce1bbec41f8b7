#include "server/metric_families.h"

#include <string>

#include "server/family_builder.h"

#include "server/grpc_status.h"

namespace moed::server {
namespace {

constexpr const char* kFinishNames[] = {"stop", "length", "cancelled", "failed"};

}  // namespace

void AppendEngineFamilies(const ServedModel& model, const engine::EngineSnapshot& snapshot,
                          MetricFamilies* families) {
  const auto count = [](int64_t value) { return static_cast<double>(value); };
  Gauge(model, "moed_requests_running", "Sequences in the batch")
      .Add(count(snapshot.running))
      .AppendTo(families);
  Gauge(model, "moed_requests_waiting", "Requests that wait for a place in the batch")
      .Add(count(snapshot.waiting))
      .AppendTo(families);
  Gauge(model, "moed_waiting_tokens", "Prompt tokens of the requests that wait")
      .Add(count(snapshot.waiting_tokens))
      .AppendTo(families);
  Gauge(model, "moed_kv_cache_usage_ratio", "Part of the KV blocks in use, 0 to 1")
      .Add(KvUsage(snapshot))
      .AppendTo(families);
  Counter(model, "moed_steps_total", "Steps of the engine")
      .Add(count(snapshot.steps_total))
      .AppendTo(families);
  Counter(model, "moed_prompt_tokens_total", "Prompt tokens processed")
      .Add(count(snapshot.prompt_tokens_total))
      .AppendTo(families);
  Counter(model, "moed_generation_tokens_total", "Tokens generated")
      .Add(count(snapshot.generation_tokens_total))
      .AppendTo(families);
  Counter(model, "moed_preemptions_total", "Sequences put back to be computed again")
      .Add(count(snapshot.preemptions_total))
      .AppendTo(families);
  Counter(model, "moed_engine_busy_seconds_total", "Engine thread's own time, outside of the model")
      .Add(snapshot.engine_busy_seconds_total)
      .AppendTo(families);
  Counter(model, "moed_model_run_seconds_total", "Time in the model")
      .Add(snapshot.run_seconds_total)
      .AppendTo(families);
  FamilyBuilder finished =
      Counter(model, "moed_requests_finished_total", "Requests by how they ended");
  for (int i = 0; i < 4; ++i) {
    finished.Add(count(snapshot.finished_total[i]), {{"finished_reason", kFinishNames[i]}});
  }
  finished.AppendTo(families);
}

void AppendRequestFamilies(const ServedModel& model, const RequestMetrics& metrics,
                           MetricFamilies* families) {
  FamilyBuilder ended = Counter(model, "moed_generate_calls_total",
                                "Generate, GenerateOnce and Chat calls by gRPC status");
  for (int code = 0; code < RequestMetrics::kNumCodes; ++code) {
    const int64_t calls = metrics.ended(code);
    if (calls > 0) ended.Add(static_cast<double>(calls), {{"code", CodeName(code)}});
  }
  ended.AppendTo(families);
  const struct {
    const char* name;
    const char* help;
    const Histogram& histogram;
  } histograms[] = {
      {"moed_time_to_first_token_seconds", "From the call's arrival to its first token",
       metrics.time_to_first_token_seconds},
      {"moed_inter_token_latency_seconds", "Between tokens of a sequence",
       metrics.inter_token_seconds},
      {"moed_e2e_request_latency_seconds", "From the call's arrival to its last token",
       metrics.end_to_end_seconds},
      {"moed_request_queue_time_seconds", "Wait for a place in the batch", metrics.queue_seconds},
      {"moed_request_prompt_tokens", "Prompt tokens of a request", metrics.prompt_tokens},
      {"moed_request_generation_tokens", "Tokens generated for a request",
       metrics.generation_tokens},
  };
  for (const auto& [name, help, histogram] : histograms) {
    FamilyBuilder(model, name, help, prometheus::MetricType::Histogram)
        .Add(histogram)
        .AppendTo(families);
  }
}

void AppendGatewayFamilies(const ServedModel& model, const engine::EngineSnapshot& snapshot,
                           MetricFamilies* families) {
  Gauge(model, "vllm:num_requests_running", "Same as moed_requests_running")
      .Add(static_cast<double>(snapshot.running))
      .AppendTo(families);
  Gauge(model, "vllm:num_requests_waiting", "Same as moed_requests_waiting")
      .Add(static_cast<double>(snapshot.waiting))
      .AppendTo(families);
  Gauge(model, "vllm:kv_cache_usage_perc", "Same as moed_kv_cache_usage_ratio")
      .Add(KvUsage(snapshot))
      .AppendTo(families);
  Gauge(model, "vllm:cache_config_info", "Size of the KV cache, as labels")
      .Add(1, {{"block_size", std::to_string(model.description.kv_block_tokens)},
               {"num_gpu_blocks", std::to_string(snapshot.kv_blocks_total)}})
      .AppendTo(families);
}

}  // namespace moed::server
