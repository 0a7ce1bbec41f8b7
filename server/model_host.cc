#include "server/model_host.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/backend/cpu/memory_limit.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/kv_cache.h"
#include "server/load_progress.h"
#include "server/model_directory.h"
#include "server/startup_memory.h"

namespace moed::server {
namespace {

// Left to everything that no plan counts: code, threads, sockets, queued requests.
constexpr int64_t kReserveBytes = int64_t{256} << 20;

std::string ModelName(const Options& options, const std::string& directory) {
  if (!options.served_model_name.empty()) return options.served_model_name;
  const std::filesystem::path path = std::filesystem::absolute(directory).lexically_normal();
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

absl::StatusOr<std::unique_ptr<backend::Backend>> CreateBackend(const Options& options) {
  if (options.device == Device::kCuda ||
      (options.device == Device::kAuto && backend::CudaAvailable())) {
    return backend::CreateCudaBackend({});
  }
  return backend::CreateCpuBackend({.num_threads = options.cpu_threads});
}

// A long prompt's chunk streams every layer's cold experts once, so a GPU wants it large; its
// memory for activations grows with it.
int64_t BatchedTokens(const Options& options, backend::Backend& backend) {
  constexpr int64_t kLargeGpuBytes = int64_t{30} << 30;
  if (options.max_num_batched_tokens > 0) return options.max_num_batched_tokens;
  const std::optional<backend::DeviceMemory> memory = backend.Memory();
  if (!memory.has_value()) return 512;
  return memory->total_bytes >= kLargeGpuBytes ? 4096 : 2048;
}

HotSetFile HotSetFileFor(const Options& options, const std::string& model_name,
                         const model::ModelConfig& config) {
  HotSetFile file = {.path = options.hot_set_file, .experts_per_layer = {}, .model = model_name};
  for (const model::LayerConfig& layer : config.layers) {
    file.experts_per_layer.push_back(layer.is_moe ? config.router.num_experts : 0);
  }
  return file;
}

// A damaged or foreign file costs a warm start, nothing else.
std::optional<cache::HotSet> LoadHotSet(const HotSetFile& file) {
  if (file.path.empty()) return std::nullopt;
  absl::StatusOr<cache::HotSet> hot_set = ReadHotSet(file);
  if (hot_set.ok()) {
    spdlog::info("hot set {}: {} experts were resident", file.path, hot_set->residents.size());
    return *std::move(hot_set);
  }
  const std::string why(hot_set.status().message());
  if (absl::IsNotFound(hot_set.status())) {
    spdlog::info("{}", why);
  } else {
    spdlog::warn("{}: {}", file.path, why);
  }
  return std::nullopt;
}

// Waits for room for all weights and some GiB for the rest, but not for the machine's last tenth:
// other processes are there for good.
int64_t AwaitPlannableMemory(const model::Checkpoint& checkpoint) {
  constexpr int64_t kBesideWeightsBytes = int64_t{4} << 30;
  const model::ModelSize size = model::ComputeModelSize(checkpoint.config());
  const int64_t expert_bytes =
      size.num_experts * static_cast<int64_t>(checkpoint.experts().format().blob_bytes());
  const int64_t available = AwaitStartupMemory(
      {.wanted_bytes = std::min(size.dense_bytes + expert_bytes + kBesideWeightsBytes,
                                backend::TotalMemoryBytes() / 10 * 9),
       .available_bytes = [] { return backend::AvailableMemoryBytes(); },
       .sleep = [](absl::Duration time) { absl::SleepFor(time); }});
  return std::max<int64_t>(available - kReserveBytes, 0);
}

absl::StatusOr<std::unique_ptr<model::ModelRunner>> CreateRunner(const Options& options,
                                                                 const std::string& directory,
                                                                 const ServedModel& served,
                                                                 LoadProgressDisplay* display) {
  auto checkpoint = model::OpenCheckpoint(
      {.directory = directory, .load_format = options.load_format, .seed = options.seed});
  if (!checkpoint.ok()) return checkpoint.status();
  auto backend = CreateBackend(options);
  if (!backend.ok()) return backend.status();
  model::ModelRunnerOptions runner_options;
  runner_options.memory_limit_bytes = AwaitPlannableMemory(**checkpoint);
  runner_options.gpu_memory_utilization = options.gpu_memory_utilization;
  runner_options.expert_format = options.expert_format;
  runner_options.expert_budget = options.expert_budget;
  runner_options.max_expert_budget = options.max_expert_budget;
  runner_options.expert_policy = options.expert_policy;
  runner_options.cold_path = options.cold_path;
  runner_options.cold_threads = options.cpu_threads;
  runner_options.hot_set = LoadHotSet(HotSetFileFor(options, served.name, (*checkpoint)->config()));
  runner_options.warm_deadline = absl::Now() + absl::Seconds(options.hot_set_load_seconds);
  runner_options.max_num_seqs = options.max_num_seqs;
  runner_options.max_num_batched_tokens = BatchedTokens(options, **backend);
  runner_options.max_model_len = options.max_model_len;
  runner_options.kv_cache_bytes = options.kv_cache_bytes;
  runner_options.progress = [display](int64_t bytes_done, int64_t bytes_total) {
    display->Update(bytes_done, bytes_total);
  };
  runner_options.model_name = served.name;
  if (served.routing_recorder != nullptr) {
    runner_options.record_routing = [recorder = served.routing_recorder.get()](std::string bytes) {
      recorder->Append(std::move(bytes));
    };
  }
  return model::ModelRunner::Create(std::move(runner_options), *std::move(checkpoint),
                                    *std::move(backend));
}

// A checkpoint without tokenizer.json or template is served without; a broken one is an error.
absl::Status LoadText(const std::string& directory, ServedModel* served) {
  auto tokenizer = text::LoadTokenizer(directory);
  if (absl::IsNotFound(tokenizer.status())) {
    spdlog::warn("no tokenizer.json: serving token ids only");
    return absl::OkStatus();
  }
  if (!tokenizer.ok()) return tokenizer.status();
  served->tokenizer = *std::move(tokenizer);
  auto bundle = PackTokenizer(directory);
  if (!bundle.ok()) return bundle.status();
  served->tokenizer_bundle = *std::move(bundle);
  auto chat_template = text::LoadChatTemplate(directory);
  if (chat_template.ok()) {
    served->chat_template = *std::move(chat_template);
  } else if (!absl::IsNotFound(chat_template.status())) {
    return chat_template.status();
  }
  return absl::OkStatus();
}

ModelDescription Describe(const Options& options, const model::ModelRunner& runner) {
  const model::ModelConfig& config = runner.config();
  const model::MemoryPlan& memory = runner.memory();
  ModelDescription description;
  description.family = config.family;
  description.max_model_len = memory.max_model_len;
  description.vocab_size = config.vocab_size;
  description.num_layers = config.num_layers();
  for (const model::LayerConfig& layer : config.layers) {
    description.moe_layers.push_back(layer.is_moe);
  }
  description.num_experts = config.router.num_experts;
  description.experts_per_token = config.router.top_k;
  description.hidden_size = config.hidden;
  description.parameters = runner.size().parameters;
  description.active_parameters = runner.size().active_parameters;
  const auto expert_bytes = static_cast<int64_t>(runner.expert_format().blob_bytes());
  description.active_cost = model::ComputeTokenCost(config, config.router.top_k, expert_bytes);
  description.dense_cost = model::ComputeTokenCost(config, config.router.num_experts, expert_bytes);
  description.device = runner.device();
  description.expert_format = backend::ExpertFormatName(runner.expert_format().kind());
  description.expert_bytes = expert_bytes;
  description.expert_stored_ratio = runner.expert_format().stored_ratio();
  description.expert_slots = runner.Snapshot()->cache.num_slots;
  description.expert_policy = options.expert_policy;
  description.dense_bytes = memory.dense_bytes;
  description.kv_cache_bytes = memory.kv_cache_bytes;
  description.kv_block_tokens = model::kKvBlockTokens;
  description.max_num_seqs = options.max_num_seqs;
  return description;
}

engine::EngineOptions EngineOptionsFor(const Options& options, const model::ModelRunner& runner) {
  return {.max_num_seqs = options.max_num_seqs,
          .max_num_batched_tokens = static_cast<int>(runner.max_num_batched_tokens()),
          .max_model_len = runner.memory().max_model_len,
          .num_kv_blocks = runner.memory().num_kv_blocks,
          .kv_block_tokens = model::kKvBlockTokens,
          .max_queued_requests = options.max_queued_requests,
          .max_queued_tokens = options.max_queued_tokens,
          .vocab_size = static_cast<int>(runner.config().vocab_size),
          .eos_token_ids = runner.checkpoint().generation().eos_token_ids};
}

// Saves through the engine thread, which the cache belongs to.
void KeepHotSet(const Options& options, const model::ModelConfig& config, ServedModel* served) {
  const auto source = [engine = served->engine.get(),
                       runner = served->expert_runner](std::function<void(cache::HotSet)> take) {
    engine->Post([runner, take = std::move(take)] { take(runner->SaveHotSet()); });
  };
  served->hot_set_keeper =
      std::make_unique<HotSetKeeper>(HotSetFileFor(options, served->name, config),
                                     absl::Seconds(options.hot_set_interval_seconds), source);
}

// Of bf12: what its lists have room for and, if they were made now, hold.
std::string DescribeEscapes(const model::ModelRunner& runner) {
  const int room = runner.expert_format().tile_escapes();
  if (room == 0) return "";
  const std::optional<int64_t> listed = runner.listed_escapes();
  const std::string text = listed.has_value() ? absl::StrCat(", ", *listed, " listed escapes") : "";
  return absl::StrCat(text, ", room for ", room, " in 32 neurons");
}

void LogPlan(const ServedModel& served, const model::ModelRunner& runner) {
  const ModelDescription& description = served.description;
  const int num_experts = static_cast<int>(runner.size().num_experts);
  spdlog::info(
      "model \"{}\": {}, {:.1f} million parameters, {:.1f} million of them for a token; {} MoE "
      "layers of {} experts, {} for a token",
      served.name, description.family, static_cast<double>(description.parameters) / 1e6,
      static_cast<double>(description.active_parameters) / 1e6, runner.size().num_moe_layers,
      description.num_experts, description.experts_per_token);
  spdlog::info("device: {}", description.device);
  spdlog::info("memory: {}", runner.memory().Describe());
  spdlog::info("experts: {} of {} resident ({:.0f} %), policy {}, cold path {}",
               description.expert_slots, num_experts,
               100.0 * static_cast<double>(description.expert_slots) / num_experts,
               description.expert_policy, runner.cold_path());
  spdlog::info("expert format: {}, {:.1f} % of bf16's bytes{}", description.expert_format,
               100 * description.expert_stored_ratio, DescribeEscapes(runner));
  if (!runner.expert_format_note().empty()) spdlog::info("{}", runner.expert_format_note());
  if (!runner.cold_path_note().empty()) spdlog::warn("{}", runner.cold_path_note());
  if (description.max_model_len < runner.config().max_positions) {
    spdlog::info("context: {} tokens, of the checkpoint's {}", description.max_model_len,
                 runner.config().max_positions);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServedModel>> LoadModel(const Options& options) {
  const absl::StatusOr<std::string> directory = FindModelDirectory(options.model);
  if (!directory.ok()) return directory.status();
  auto served = std::make_unique<ServedModel>();
  served->name = ModelName(options, *directory);
  absl::Status status = LoadText(*directory, served.get());
  if (!status.ok()) return status;

  if (!options.record_routing.empty()) {
    auto recorder = RoutingRecorder::Create(options.record_routing);
    if (!recorder.ok()) return recorder.status();
    served->routing_recorder = *std::move(recorder);
  }
  absl::StatusOr<std::unique_ptr<model::ModelRunner>> runner;
  {
    LoadProgressDisplay display(served->name);
    runner = CreateRunner(options, *directory, *served, &display);
  }
  if (!runner.ok()) return runner.status();
  const model::ModelRunner& loaded = **runner;
  served->description = Describe(options, loaded);
  served->generation = loaded.checkpoint().generation();
  served->experts = [&loaded] { return loaded.Snapshot(); };
  LogPlan(*served, loaded);
  served->expert_runner = runner->get();
  served->runner = *std::move(runner);
  served->engine = engine::Engine::Create(EngineOptionsFor(options, loaded), served->runner.get(),
                                          served->tokenizer.get());
  if (!options.hot_set_file.empty()) KeepHotSet(options, loaded.config(), served.get());
  return served;
}

}  // namespace moed::server
