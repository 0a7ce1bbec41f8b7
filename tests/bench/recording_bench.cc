// What recording the routing costs a model, from the router to the file: the demo model, whose
// steps are so short that recording weighs more than anywhere else, decodes with and without, in
// turn. Goal: at most 2 % of throughput. Counter recorded_over_plain: the median over pairs of 64
// steps.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/internal/raw_logging.h"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/backend/cpu/cpu_count.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/model_runner.h"
#include "server/routing_recorder.h"

namespace moed::model {
namespace {

constexpr int kBlockSteps = 64;
constexpr int kMaxContext = 1024;

// `recorder`: null to record nothing.
std::unique_ptr<ModelRunner> CreateRunner(server::RoutingRecorder* recorder) {
  auto checkpoint = OpenCheckpoint({.directory = MOED_DEMO_MODEL});
  auto backend = backend::CreateCpuBackend({.num_threads = backend::AvailableCpus()});
  ABSL_RAW_CHECK(checkpoint.ok() && backend.ok(), "the demo model must open");
  ModelRunnerOptions options;
  options.memory_limit_bytes = int64_t{1} << 40;
  options.expert_budget = "100%";
  options.max_num_seqs = 32;
  options.max_num_batched_tokens = 512;
  options.max_model_len = 2 * kMaxContext;
  options.kv_cache_bytes = int64_t{1} << 30;
  options.io_threads = 1;
  if (recorder != nullptr) {
    options.record_routing = [recorder](std::string bytes) { recorder->Append(std::move(bytes)); };
  }
  auto runner =
      ModelRunner::Create(std::move(options), *std::move(checkpoint), *std::move(backend));
  ABSL_RAW_CHECK(runner.ok(), runner.status().ToString().c_str());
  return *std::move(runner);
}

// Sequences of random tokens, decoding.
class Decoder {
 public:
  Decoder(int sequences, server::RoutingRecorder* recorder)
      : sequences_(sequences),
        runner_(CreateRunner(recorder)),
        blocks_(runner_->memory().num_kv_blocks) {
    std::iota(blocks_.begin(), blocks_.end(), 0);
  }

  // Seconds that kBlockSteps steps take.
  double RunBlock() {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kBlockSteps; ++i) Step();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  void Step() {
    StepInput input;
    constexpr int kBlocksEach = kMaxContext / kKvBlockTokens + 1;
    for (int i = 0; i < sequences_; ++i) {
      input.token_ids.push_back(static_cast<int32_t>(random_() % 2000));
      input.chunks.push_back(
          {.num_tokens = 1,
           .context_start = context_,
           .kv_blocks = std::span(blocks_).subspan(int64_t{i} * kBlocksEach, kBlocksEach)});
    }
    const absl::Status status = runner_->Run(input, &result_);
    ABSL_RAW_CHECK(status.ok(), status.ToString().c_str());
    context_ = (context_ + 1) % kMaxContext;
  }

  const int sequences_;
  std::unique_ptr<ModelRunner> runner_;
  std::vector<int32_t> blocks_;
  std::mt19937 random_{7};
  int context_ = 0;
  StepResult result_;
};

// Argument: sequences.
void BM_Recording(benchmark::State& state) {
  const std::string path = std::filesystem::temp_directory_path() / "recording_bench.trace";
  auto recorder = server::RoutingRecorder::Create(path);
  ABSL_RAW_CHECK(recorder.ok(), recorder.status().ToString().c_str());
  {
    Decoder plain(static_cast<int>(state.range(0)), nullptr);
    Decoder recorded(static_cast<int>(state.range(0)), recorder->get());
    std::vector<double> ratios;
    for (auto _ : state) {
      const double plain_seconds = plain.RunBlock();
      ratios.push_back(plain_seconds / recorded.RunBlock());
    }
    std::sort(ratios.begin(), ratios.end());
    state.counters["recorded_over_plain"] = ratios[ratios.size() / 2];
  }
  std::filesystem::remove(path);
}
BENCHMARK(BM_Recording)
    ->Arg(1)
    ->Arg(8)
    ->Arg(32)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime()
    ->Iterations(60);

}  // namespace
}  // namespace moed::model

BENCHMARK_MAIN();
