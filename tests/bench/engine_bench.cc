// What the engine itself costs: 64 streams over a runner that computes nothing, and the way out to
// the sinks alone. The aims: at most 50 us of the engine thread a step, 150 000 tokens a second
// out.
#include <benchmark/benchmark.h>

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/engine/engine.h"
#include "runtime/engine/output_stream.h"

namespace moed::engine {
namespace {

constexpr int kStreams = 64;
constexpr int kTokensPerStream = 2000;
constexpr int kPromptTokens = 16;

class NullRunner final : public model::StepRunner {
 public:
  absl::Status Run(const model::StepInput& input, model::StepResult* result) override {
    result->chunks.resize(input.chunks.size());
    for (size_t i = 0; i < input.chunks.size(); ++i) {
      if (input.chunks[i].sampler == nullptr) continue;
      result->chunks[i].token = 100;
      input.chunks[i].sampler->Accept(100);
    }
    return absl::OkStatus();
  }
};

class CountingSink final : public OutputSink {
 public:
  void OnPromptLogprobs(std::vector<std::vector<model::TokenLogprob>>) override {}
  void OnDelta(Delta delta) override {
    ++deltas_;
    benchmark::DoNotOptimize(delta.tokens.data());
  }
  void OnSequenceFinish(SequenceFinish) override {}
  void OnDone(const absl::Status&, const Usage&) override {}

  int64_t deltas() const { return deltas_; }

 private:
  std::atomic<int64_t> deltas_ = 0;
};

EngineOptions Options() {
  return {.max_num_seqs = kStreams,
          .max_num_batched_tokens = 2048,
          .max_model_len = 4096,
          .num_kv_blocks = kStreams * 256,
          .kv_block_tokens = 16,
          .max_queued_requests = 1000,
          .max_queued_tokens = 100000,
          .vocab_size = 1000,
          .eos_token_ids = {0}};
}

Request IdsOnly(std::shared_ptr<OutputSink> sink) {
  Request request;
  request.prompt.assign(kPromptTokens, 5);
  request.max_tokens = kTokensPerStream;
  request.detokenize = false;
  request.sink = std::move(sink);
  return request;
}

void BM_EngineOverhead(benchmark::State& state) {
  double busy_seconds = 0;
  int64_t steps = 0;
  const auto sink = std::make_shared<CountingSink>();
  for (auto _ : state) {
    NullRunner runner;
    const auto engine = Engine::Create(Options(), &runner, nullptr);
    for (int i = 0; i < kStreams; ++i) {
      if (!engine->Submit(IdsOnly(sink)).ok()) state.SkipWithError("a request was refused");
    }
    engine->Drain(absl::InfiniteFuture());
    const EngineSnapshot snapshot = engine->Snapshot();
    busy_seconds += snapshot.engine_busy_seconds_total;
    steps += snapshot.steps_total;
  }
  const int64_t tokens = state.iterations() * kStreams * kTokensPerStream;
  state.SetItemsProcessed(tokens);  // items_per_second: tokens from the runner to the sinks
  state.counters["engine_us_per_step"] = busy_seconds / static_cast<double>(steps) * 1e6;
  state.counters["tokens_per_delta"] =
      static_cast<double>(tokens) / static_cast<double>(sink->deltas());
}
BENCHMARK(BM_EngineOverhead)->Unit(benchmark::kMillisecond)->UseRealTime();

// The output thread's work for a step of 64 streams, one delta a token.
void BM_OutputOfAStep(benchmark::State& state) {
  const auto sink = std::make_shared<CountingSink>();
  std::vector<OutputStream> streams;
  for (int i = 0; i < kStreams; ++i) streams.emplace_back(IdsOnly(sink), nullptr);
  OutputCounts counts;
  for (auto _ : state) {
    for (OutputStream& stream : streams) stream.Push(0, {.token = {.id = 7}}, &counts);
    for (OutputStream& stream : streams) stream.Flush(0);
  }
  state.SetItemsProcessed(counts.generation_tokens);
}
BENCHMARK(BM_OutputOfAStep);

}  // namespace
}  // namespace moed::engine

BENCHMARK_MAIN();
