// A whole model at the dimensions of OLMoE-1B-7B (config of family qwen3_moe, random weights, fewer
// layers): decode against the memory's read rate, prefill against oneDNN's rate, and paging from
// the page cache against reading and laying out alone, each as a ratio measured in one run.
//   model_bench [--benchmark_filter=Decode]      MOED_BENCH_LAYERS=16 for all layers
// DecodeBf12 and ColdDecodeBf12 compare bf12 experts with bf16 ones, all resident and at half of
// the bf16 bytes (MOED_BENCH_LAYERS=8 takes 18 GiB, files in the page cache included). Counters:
// of_read and of_onednn, rates over these ceilings; stall_of_load, seconds stalled over the seconds
// that the paged bytes take when read alone by the same threads.
#include <algorithm>
#include <chrono>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "dnnl.hpp"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/backend/cpu/cpu_count.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/model_runner.h"
#include "tests/bench/bench_checkpoint.h"

namespace moed::model {
namespace {

constexpr int kPrefillTokens = 512;

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

// Runs `body(thread)` on as many threads as the model computes with; returns the seconds taken.
template <typename Body>
double OnAllThreads(int num_threads, Body body) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) threads.emplace_back([&, i] { body(i); });
  for (std::thread& thread : threads) thread.join();
  return Seconds(start);
}

std::unique_ptr<ModelRunner> CreateRunner(
    const std::string& directory, LoadFormat load_format, const std::string& budget,
    ExpertFormatPreference format = ExpertFormatPreference::kAuto) {
  auto checkpoint = OpenCheckpoint({.directory = directory, .load_format = load_format, .seed = 1});
  auto backend = backend::CreateCpuBackend({.num_threads = backend::AvailableCpus()});
  ABSL_RAW_CHECK(checkpoint.ok() && backend.ok(), "the bench's own checkpoint must open");
  auto runner = ModelRunner::Create({.memory_limit_bytes = int64_t{1} << 40,
                                     .expert_format = format,
                                     .expert_budget = budget,
                                     .max_num_seqs = 32,
                                     .max_num_batched_tokens = kPrefillTokens,
                                     .max_model_len = 2048,
                                     .kv_cache_bytes = int64_t{256} << 20,
                                     .io_threads = backend::AvailableCpus()},
                                    *std::move(checkpoint), *std::move(backend));
  ABSL_RAW_CHECK(runner.ok(), runner.status().ToString().c_str());
  return *std::move(runner);
}

// Steps of sequences with random tokens, so that routing is near uniform.
class Load {
 public:
  explicit Load(ModelRunner& runner) : runner_(runner), blocks_(runner.memory().num_kv_blocks) {
    std::iota(blocks_.begin(), blocks_.end(), 0);
  }

  // One step of `sequences` chunks of `tokens` each, at position `context`.
  void Step(int sequences, int tokens, int context) {
    StepInput input;
    std::vector<SamplerState> samplers;
    samplers.reserve(sequences);
    const int blocks_each = (context + tokens) / kKvBlockTokens + 1;
    for (int i = 0; i < sequences; ++i) {
      for (int t = 0; t < tokens; ++t) input.token_ids.push_back(random_() % kVocabulary);
      samplers.emplace_back(SamplingParams{.temperature = 0}, std::span<const int32_t>());
      input.chunks.push_back({.num_tokens = tokens,
                              .context_start = context,
                              .kv_blocks = std::span(blocks_).subspan(i * blocks_each, blocks_each),
                              .sampler = &samplers.back()});
    }
    const absl::Status status = runner_.Run(input, &result_);
    ABSL_RAW_CHECK(status.ok(), status.ToString().c_str());
  }
  const StepResult& result() const { return result_; }

 private:
  ModelRunner& runner_;
  std::vector<int32_t> blocks_;
  std::mt19937 random_{7};
  StepResult result_;
};

// Bytes per second at which all threads together read memory and do nothing else.
double ReadRate() {
  const int threads = backend::AvailableCpus();
  constexpr size_t kWords = size_t{64} << 20;  // 512 MiB: in no cache
  std::vector<uint64_t> words(kWords, 1);
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const double seconds = OnAllThreads(threads, [&](int thread) {
      const size_t part = kWords / threads;
      const uint64_t* begin = words.data() + thread * part;
      benchmark::DoNotOptimize(std::accumulate(begin, begin + part, uint64_t{0}));
    });
    best = std::max(best, static_cast<double>(kWords * sizeof(uint64_t)) / seconds);
  }
  return best;
}

// Weights that one decoded token must read: all dense ones but the embedding, and k experts a
// layer.
double DecodeBytes(const ModelRunner& runner) {
  const double embedding = 2.0 * kVocabulary * kHidden;
  const double experts = 8.0 * Layers() * static_cast<double>(runner.expert_format().blob_bytes());
  return static_cast<double>(runner.size().dense_bytes) - embedding + experts;
}

void Decode(benchmark::State& state) {
  const BenchCheckpoint checkpoint(/*with_weights=*/false);
  const auto runner = CreateRunner(checkpoint.directory(), LoadFormat::kDummy, "100%");
  Load load(*runner);
  const double read_rate = ReadRate();
  load.Step(1, 64, 0);
  int context = 64;
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) load.Step(1, 1, context++);
  const double steps_per_second = static_cast<double>(state.iterations()) / Seconds(start);
  const double rate = DecodeBytes(*runner) * steps_per_second;
  state.counters["bytes_per_second"] = rate;
  state.counters["of_read"] = rate / read_rate;
}

// Multiply-adds per second of a warm product [512, 2048] x [2048, 2048]; 0 if oneDNN cannot, as in
// bf16 below AVX-512.
double OneDnnRate(dnnl::memory::data_type type) try {
  using dnnl::memory;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const memory::desc x({kPrefillTokens, kHidden}, type, memory::format_tag::ab);
  const memory::desc w({kHidden, kHidden}, type, memory::format_tag::ba);
  const memory::desc y({kPrefillTokens, kHidden}, memory::data_type::f32, memory::format_tag::ab);
  const dnnl::matmul product(dnnl::matmul::primitive_desc(dnnl::matmul::desc(x, w, y), engine));
  memory xm(x, engine), wm(w, engine), ym(y, engine);
  double best = 0;
  for (int round = 0; round < 20; ++round) {
    const auto start = std::chrono::steady_clock::now();
    product.execute(stream, {{DNNL_ARG_SRC, xm}, {DNNL_ARG_WEIGHTS, wm}, {DNNL_ARG_DST, ym}});
    stream.wait();
    best = std::max(best, double{kPrefillTokens} * kHidden * kHidden / Seconds(start));
  }
  return best;
} catch (const dnnl::error&) {
  return 0;
}

void Prefill(benchmark::State& state) {
  const BenchCheckpoint checkpoint(/*with_weights=*/false);
  const auto runner = CreateRunner(checkpoint.directory(), LoadFormat::kDummy, "100%");
  Load load(*runner);
  const double bf16_rate = OneDnnRate(dnnl::memory::data_type::bf16);
  const double f32_rate = OneDnnRate(dnnl::memory::data_type::f32);
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) load.Step(1, kPrefillTokens, 0);
  const double steps_per_second = static_cast<double>(state.iterations()) / Seconds(start);
  const double layer_products = 4.0 * kHidden * kHidden + 8 * 3.0 * kHidden * kIntermediate;
  const double products = Layers() * layer_products * kPrefillTokens + 1.0 * kVocabulary * kHidden;
  state.counters["tokens_per_second"] = kPrefillTokens * steps_per_second;
  state.counters["products_per_second"] = products * steps_per_second;
  if (bf16_rate > 0) state.counters["of_onednn"] = products * steps_per_second / bf16_rate;
  state.counters["of_onednn_f32"] = products * steps_per_second / f32_rate;
}

// Bytes per second at which the loader's threads read and lay out experts with nothing beside.
double LoadRate(const ExpertSource& source) {
  const int threads = backend::AvailableCpus();
  const size_t blob_bytes = source.format().blob_bytes();
  constexpr int kSlots = 16;
  std::vector<std::byte> slots(threads * kSlots * blob_bytes);
  double best = 0;
  for (int round = 0; round < 3; ++round) {
    const double seconds = OnAllThreads(threads, [&](int thread) {
      for (int expert = thread; expert < kExperts; expert += threads) {
        std::byte* slot = slots.data() + (thread * kSlots + expert % kSlots) * blob_bytes;
        source.Read({.layer = round % Layers(), .expert = expert}, {}, {slot, blob_bytes})
            .IgnoreError();
      }
    });
    best = std::max(best, static_cast<double>(kExperts * blob_bytes) / seconds);
  }
  return best;
}

void ColdDecode(benchmark::State& state) {
  const BenchCheckpoint checkpoint(/*with_weights=*/true);
  const auto runner = CreateRunner(checkpoint.directory(), LoadFormat::kAuto, "25%");
  Load load(*runner);
  LoadRate(runner->checkpoint().experts());
  const double load_rate = LoadRate(runner->checkpoint().experts());
  double stall_seconds = 0, bytes_paged = 0;
  int context = 0;
  for (auto _ : state) {
    load.Step(1, 1, context++);
    stall_seconds += load.result().chunks[0].experts.stall_seconds;
    bytes_paged += load.result().chunks[0].experts.bytes_paged;
  }
  state.counters["load_bytes_per_second"] = load_rate;
  state.counters["bytes_paged_per_step"] = bytes_paged / static_cast<double>(state.iterations());
  state.counters["stall_of_load"] = stall_seconds / (bytes_paged / load_rate);
}

// Decodes the same tokens by two runners in turn, so that whatever else the machine does hits both.
// Returns the steps per second of each.
std::pair<double, double> DecodeInTurn(benchmark::State& state, ModelRunner& bf16,
                                       ModelRunner& bf12) {
  constexpr int kSteps = 8;  // of one before the other
  constexpr int kWarmSteps = 40;
  Load loads[] = {Load(bf16), Load(bf12)};
  double seconds[] = {0, 0};
  int context = 0;
  const auto run = [&](int which, int steps) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < steps; ++i) loads[which].Step(1, 1, context + i);
    return Seconds(start);
  };
  for (int which : {0, 1}) run(which, kWarmSteps);
  context += kWarmSteps;
  for (auto _ : state) {
    for (int which : {0, 1}) seconds[which] += run(which, kSteps);
    context += kSteps;
  }
  const double steps = kSteps * static_cast<double>(state.iterations());
  return {steps / seconds[0], steps / seconds[1]};
}

void Report(benchmark::State& state, std::pair<double, double> steps_per_second) {
  state.counters["bf16_tokens_per_second"] = steps_per_second.first;
  state.counters["bf12_tokens_per_second"] = steps_per_second.second;
  state.counters["bf12_over_bf16"] = steps_per_second.second / steps_per_second.first;
}

// All experts resident.
void DecodeBf12(benchmark::State& state) {
  const BenchCheckpoint checkpoint(/*with_weights=*/false);
  const auto bf16 = CreateRunner(checkpoint.directory(), LoadFormat::kDummy, "100%");
  const auto bf12 = CreateRunner(checkpoint.directory(), LoadFormat::kDummy, "100%",
                                 ExpertFormatPreference::kBF12);
  Report(state, DecodeInTurn(state, *bf16, *bf12));
}

// Half of the bf16 bytes resident, the rest paged from the page cache.
void ColdDecodeBf12(benchmark::State& state) {
  const BenchCheckpoint checkpoint(/*with_weights=*/true);
  const ConvertedCheckpoint converted(checkpoint);
  const int64_t expert_bytes = 3 * 2 * kHidden * kIntermediate;
  const std::string budget = absl::StrCat(expert_bytes * kExperts * Layers() / 2 / 1024, "KiB");
  const auto bf16 = CreateRunner(checkpoint.directory(), LoadFormat::kAuto, budget);
  const auto bf12 = CreateRunner(converted.directory(), LoadFormat::kAuto, budget);
  LoadRate(bf16->checkpoint().experts());
  LoadRate(bf12->checkpoint().experts());
  state.counters["convert_bytes_per_second"] = converted.bytes_per_second();
  state.counters["bf16_load_bytes_per_second"] = LoadRate(bf16->checkpoint().experts());
  state.counters["bf12_load_bytes_per_second"] = LoadRate(bf12->checkpoint().experts());
  Report(state, DecodeInTurn(state, *bf16, *bf12));
}

BENCHMARK(DecodeBf12)->Unit(benchmark::kMillisecond)->UseRealTime()->Iterations(20);
BENCHMARK(ColdDecodeBf12)->Unit(benchmark::kMillisecond)->UseRealTime()->Iterations(20);
BENCHMARK(Decode)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(3);
BENCHMARK(Prefill)->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(3);
BENCHMARK(ColdDecode)->Unit(benchmark::kMillisecond)->UseRealTime()->Iterations(60);

}  // namespace
}  // namespace moed::model

BENCHMARK_MAIN();
