#include "server/metric_families.h"

#include <limits>
#include <string>
#include <utility>

#include "server/grpc_status.h"

namespace moed::server {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

constexpr const char* kFinishNames[] = {"stop", "length", "cancelled", "failed"};
constexpr const char* kPathNames[cache::kNumBytePaths] = {"disk", "link", "cpu"};

// Collects samples of one family; `type` counter or gauge.
class FamilyBuilder {
 public:
  FamilyBuilder(const ServedModel& model, const char* name, const char* help, MetricType type)
      : model_name_(model.name) {
    family_.name = name;
    family_.help = help;
    family_.type = type;
  }

  FamilyBuilder& Add(double value, Labels labels = {}) {
    ClientMetric& metric = NewSample(std::move(labels));
    (family_.type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
    return *this;
  }

  FamilyBuilder& Add(const Histogram& histogram) {
    const Histogram::Snapshot snapshot = histogram.Read();
    ClientMetric::Histogram& out = NewSample({}).histogram;
    uint64_t cumulative = 0;
    for (size_t i = 0; i < histogram.upper_bounds().size(); ++i) {
      cumulative += snapshot.bucket_counts[i];
      out.bucket.push_back({cumulative, histogram.upper_bounds()[i]});
    }
    cumulative += snapshot.bucket_counts.back();
    out.bucket.push_back({cumulative, std::numeric_limits<double>::infinity()});
    out.sample_count = cumulative;
    out.sample_sum = snapshot.sum;
    return *this;
  }

  void AppendTo(MetricFamilies* families) {
    if (!family_.metric.empty()) families->push_back(std::move(family_));
  }

 private:
  ClientMetric& NewSample(Labels labels) {
    ClientMetric& metric = family_.metric.emplace_back();
    metric.label = std::move(labels);
    metric.label.push_back({"model_name", model_name_});
    return metric;
  }

  const std::string& model_name_;
  MetricFamily family_;
};

FamilyBuilder Counter(const ServedModel& model, const char* name, const char* help) {
  return {model, name, help, MetricType::Counter};
}

FamilyBuilder Gauge(const ServedModel& model, const char* name, const char* help) {
  return {model, name, help, MetricType::Gauge};
}

Labels LayerLabel(size_t layer) { return {{"layer", std::to_string(layer)}}; }

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
    FamilyBuilder(model, name, help, MetricType::Histogram).Add(histogram).AppendTo(families);
  }
}

void AppendLayerFamilies(const ServedModel& model, const cache::CacheStats& stats,
                         MetricFamilies* families) {
  const struct {
    const char* name;
    const char* help;
    MetricType type;
    double (*value)(const cache::LayerStats&);
  } series[] = {
      {"moed_expert_hits_total", "Experts of a step found resident", MetricType::Counter,
       [](const cache::LayerStats& layer) { return static_cast<double>(layer.hits_total); }},
      {"moed_expert_misses_total", "Experts of a step not resident", MetricType::Counter,
       [](const cache::LayerStats& layer) { return static_cast<double>(layer.misses_total); }},
      {"moed_expert_evictions_total", "Experts that lost their slot", MetricType::Counter,
       [](const cache::LayerStats& layer) { return static_cast<double>(layer.evictions_total); }},
      {"moed_expert_admissions_total", "Experts that got a slot", MetricType::Counter,
       [](const cache::LayerStats& layer) { return static_cast<double>(layer.admissions_total); }},
      {"moed_expert_layer_tokens_total", "Token-expert pairs routed", MetricType::Counter,
       [](const cache::LayerStats& layer) { return static_cast<double>(layer.tokens_total); }},
      {"moed_expert_stall_seconds_total", "Time that steps waited for experts", MetricType::Counter,
       [](const cache::LayerStats& layer) { return layer.stall_seconds_total; }},
      {"moed_experts_resident", "Experts in slots", MetricType::Gauge,
       [](const cache::LayerStats& layer) { return static_cast<double>(layer.resident); }},
  };
  const std::vector<bool>& moe_layers = model.description.moe_layers;
  for (const auto& [name, help, type, value] : series) {
    FamilyBuilder family(model, name, help, type);
    for (size_t layer = 0; layer < stats.layers.size(); ++layer) {
      if (moe_layers[layer]) family.Add(value(stats.layers[layer]), LayerLabel(layer));
    }
    family.AppendTo(families);
  }
  FamilyBuilder bytes =
      Counter(model, "moed_expert_bytes_paged_total", "Bytes of missed experts by their path");
  for (size_t layer = 0; layer < stats.layers.size(); ++layer) {
    for (int path = 0; path < cache::kNumBytePaths; ++path) {
      const int64_t moved = stats.layers[layer].bytes_total[path];
      if (moved == 0) continue;
      Labels labels = LayerLabel(layer);
      labels.push_back({"path", kPathNames[path]});
      bytes.Add(static_cast<double>(moved), std::move(labels));
    }
  }
  bytes.AppendTo(families);
  Gauge(model, "moed_expert_slots", "Experts that the budget holds")
      .Add(stats.num_slots)
      .AppendTo(families);
}

void AppendExpertFamilies(const ServedModel& model, const cache::ExpertStats& stats,
                          MetricFamilies* families) {
  FamilyBuilder tokens = Counter(model, "moed_expert_tokens_total", "Tokens routed to an expert");
  for (size_t layer = 0; layer < stats.tokens_total.size(); ++layer) {
    for (size_t expert = 0; expert < stats.tokens_total[layer].size(); ++expert) {
      Labels labels = LayerLabel(layer);
      labels.push_back({"expert", std::to_string(expert)});
      tokens.Add(static_cast<double>(stats.tokens_total[layer][expert]), std::move(labels));
    }
  }
  tokens.AppendTo(families);
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
