// What a long prefill does to those who decode beside it, and they to it: the real engine over a
// model at the dimensions of OLMoE-1B-7B (random weights, fewer layers), all experts resident, four
// sequences decoding. Beside the passes, the same without them: chunks that join the decodes' step.
//   prefill_bench          MOED_BENCH_LAYERS=16 for all layers, MOED_BENCH_PROMPT=4096
// Counters: gap_of_alone, the 95th percentile of the time between two tokens beside the prefill
// over that alone; of_bound, over three times alone and one layer of the prefill; prefill_of_alone,
// the prefill's speed over that alone.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmark/benchmark.h"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/backend/cpu/cpu_count.h"
#include "runtime/engine/engine.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/model_runner.h"

namespace moed::engine {
namespace {

constexpr int kDecodes = 4;
constexpr int kChunkTokens = 512;
constexpr int kVocabulary = 50304;

using Clock = std::chrono::steady_clock;

int FromEnvironment(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::max(1, std::atoi(value));
}

double Seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

std::string CheckpointDirectory() {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / absl::StrCat("moed_prefill_bench_", getpid());
  std::filesystem::create_directories(path);
  std::ofstream(path / "config.json") << absl::StrFormat(
      R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
          "hidden_size": 2048, "vocab_size": %d, "num_hidden_layers": %d,
          "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 128,
          "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "num_experts": 64,
          "num_experts_per_tok": 8, "norm_topk_prob": false, "moe_intermediate_size": 1024})",
      kVocabulary, FromEnvironment("MOED_BENCH_LAYERS", 4));
  return path;
}

std::unique_ptr<model::ModelRunner> CreateRunner(const std::string& directory) {
  auto checkpoint = model::OpenCheckpoint(
      {.directory = directory, .load_format = model::LoadFormat::kDummy, .seed = 1});
  auto backend = backend::CreateCpuBackend({.num_threads = backend::AvailableCpus()});
  ABSL_RAW_CHECK(checkpoint.ok() && backend.ok(), "the bench's own checkpoint must open");
  auto runner = model::ModelRunner::Create({.memory_limit_bytes = int64_t{1} << 40,
                                            .expert_budget = "100%",
                                            .max_num_seqs = 8,
                                            .max_num_batched_tokens = kChunkTokens,
                                            .max_model_len = 8192,
                                            .kv_cache_bytes = int64_t{512} << 20},
                                           *std::move(checkpoint), *std::move(backend));
  ABSL_RAW_CHECK(runner.ok(), runner.status().ToString().c_str());
  return *std::move(runner);
}

// The runner without its passes.
class WithoutPasses final : public model::StepRunner {
 public:
  explicit WithoutPasses(model::StepRunner* runner) : runner_(runner) {}
  absl::Status Run(const model::StepInput& input, model::StepResult* result) override {
    return runner_->Run(input, result);
  }

 private:
  model::StepRunner* runner_;
};

// When each token came.
class TimingSink final : public OutputSink {
 public:
  void OnPromptLogprobs(std::vector<std::vector<model::TokenLogprob>>) override {}
  void OnDelta(Delta delta) override {
    std::lock_guard lock(mutex_);
    times_.insert(times_.end(), delta.tokens.size(), Clock::now());
    changed_.notify_all();
  }
  void OnSequenceFinish(SequenceFinish) override {}
  void OnDone(const absl::Status& status, const Usage&) override {
    ABSL_RAW_CHECK(status.ok() || absl::IsCancelled(status), status.ToString().c_str());
    std::lock_guard lock(mutex_);
    done_ = true;
    changed_.notify_all();
  }

  void AwaitTokens(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return times_.size() >= count || done_; });
  }
  void AwaitDone() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done_; });
  }
  std::vector<Clock::time_point> times() const {
    std::lock_guard lock(mutex_);
    return times_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Clock::time_point> times_;
  bool done_ = false;
};

std::shared_ptr<TimingSink> Submit(Engine& engine, const std::string& id, int prompt_tokens,
                                   int64_t max_tokens) {
  auto sink = std::make_shared<TimingSink>();
  Request request;
  request.id = id;
  for (int i = 0; i < prompt_tokens; ++i) request.prompt.push_back((i * 7919 + 13) % kVocabulary);
  request.max_tokens = max_tokens;
  request.ignore_eos = true;
  request.detokenize = false;
  request.sink = sink;
  const absl::Status status = engine.Submit(std::move(request));
  ABSL_RAW_CHECK(status.ok(), status.ToString().c_str());
  return sink;
}

std::vector<std::shared_ptr<TimingSink>> StartDecodes(Engine& engine) {
  std::vector<std::shared_ptr<TimingSink>> sinks;
  for (int i = 0; i < kDecodes; ++i) {
    sinks.push_back(Submit(engine, absl::StrCat("decode", i), 32, 4000));
  }
  for (const auto& sink : sinks) sink->AwaitTokens(20);
  return sinks;
}

void EndDecodes(Engine& engine, const std::vector<std::shared_ptr<TimingSink>>& sinks) {
  for (int i = 0; i < kDecodes; ++i) engine.Cancel(absl::StrCat("decode", i));
  for (const auto& sink : sinks) sink->AwaitDone();
}

// The 95th percentile of the gaps that end between the two times.
double GapSeconds(const std::vector<std::shared_ptr<TimingSink>>& sinks, Clock::time_point from,
                  Clock::time_point to) {
  std::vector<double> gaps;
  for (const auto& sink : sinks) {
    const std::vector<Clock::time_point> times = sink->times();
    for (size_t i = 1; i < times.size(); ++i) {
      if (times[i] > from && times[i - 1] < to) gaps.push_back(Seconds(times[i - 1], times[i]));
    }
  }
  ABSL_RAW_CHECK(!gaps.empty(), "nothing was decoded");
  std::sort(gaps.begin(), gaps.end());
  return gaps[gaps.size() * 95 / 100];
}

void PrefillBesideDecodes(benchmark::State& state) {
  const bool passes = state.range(0) != 0;
  const int prompt_tokens = FromEnvironment("MOED_BENCH_PROMPT", 2048);
  const std::string directory = CheckpointDirectory();
  const auto runner = CreateRunner(directory);
  WithoutPasses without(runner.get());
  const auto engine =
      Engine::Create({.max_num_seqs = 8,
                      .max_num_batched_tokens = kChunkTokens,
                      .max_model_len = 8192,
                      .num_kv_blocks = runner->memory().num_kv_blocks,
                      .kv_block_tokens = model::kKvBlockTokens,
                      .max_queued_requests = 100,
                      .max_queued_tokens = 100000,
                      .vocab_size = kVocabulary,
                      .eos_token_ids = {0}},
                     passes ? static_cast<model::StepRunner*>(runner.get()) : &without, nullptr);
  for (auto _ : state) {
    Submit(*engine, "warm", kChunkTokens, 4)->AwaitDone();
    auto start = Clock::now();
    Submit(*engine, "alone", prompt_tokens, 1)->AwaitDone();
    const double prefill_alone = Seconds(start, Clock::now());

    auto decodes = StartDecodes(*engine);
    start = Clock::now();
    for (const auto& sink : decodes) sink->AwaitTokens(100);
    const double gap_alone = GapSeconds(decodes, start, Clock::now());

    start = Clock::now();
    Submit(*engine, "beside", prompt_tokens, 1)->AwaitDone();
    const auto end = Clock::now();
    EndDecodes(*engine, decodes);
    const double gap = GapSeconds(decodes, start, end);
    const int chunks = (prompt_tokens + kChunkTokens - 1) / kChunkTokens;
    const double layer = prefill_alone / (chunks * runner->config().num_layers());
    state.counters["gap_alone_ms"] = gap_alone * 1e3;
    state.counters["gap_ms"] = gap * 1e3;
    state.counters["layer_ms"] = layer * 1e3;
    state.counters["gap_of_alone"] = gap / gap_alone;
    state.counters["of_bound"] = gap / (3 * gap_alone + layer);
    state.counters["prefill_of_alone"] = prefill_alone / Seconds(start, end);
  }
  std::filesystem::remove_all(directory);
}
BENCHMARK(PrefillBesideDecodes)
    ->ArgName("passes")
    ->Arg(0)
    ->Arg(1)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime()
    ->Iterations(1);

}  // namespace
}  // namespace moed::engine

BENCHMARK_MAIN();
