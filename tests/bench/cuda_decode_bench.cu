// Decode steps of a whole model on the GPU against the limit that memory sets, at several shares of
// experts in VRAM: the sum over layers of dense bytes / V + max(hot expert bytes / V, cold expert
// bytes / B), plus lm_head bytes / V, all in stored bytes. V is the rate at which a kernel reads
// VRAM; B what cold experts can come at: the link's, or on the hybrid cold path what link and CPU
// read at the same time. All rates are measured in the same run; hot and cold bytes are counted,
// not assumed. Then prefill of one chunk at the same shares. Shape of Qwen3-30B-A3B, random weights
// and tokens.
//
// In one run: bf16 over the link, and each other combination of format and cold path that was asked
// for, at equal VRAM bytes, each line with its time over that of bf16 over the link.
//
// usage: cuda_decode_bench [layers, default 12] [context, default 512] [residencies in percent of
// the bf16 bytes, as 50,25, or all] [batches, or all] [formats, as bf16,bf12] [cold paths, as
// link,cpu,hybrid]
#include <cuda_runtime.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/cold_path_choice.h"
#include "runtime/model/expert_store.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/model_size.h"
#include "runtime/model/recoded_experts.h"
#include "runtime/model/transformer.h"
#include "runtime/model/weights.h"

namespace moed::model {
namespace {

constexpr int kVocabulary = 151936;
constexpr int kMaxBatch = 64;
constexpr int kPrefillTokens = 4096;

__global__ void ReadAll(const uint4* data, size_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const size_t step = size_t(gridDim.x) * blockDim.x;
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint4 value = __ldcs(data + i);
    sum += value.x ^ value.y ^ value.z ^ value.w;
  }
  if (sum == 0x12345678u && sink != nullptr) *sink = sum;
}

// Bytes per second of the best of several passes.
double ReadRate(const std::byte* data, size_t bytes) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  uint32_t* sink;
  cudaMalloc(&sink, 4);
  float best = 1e9f;
  for (int pass = 0; pass < 4; ++pass) {
    cudaEventRecord(begin);
    ReadAll<<<132 * 8, 512>>>(reinterpret_cast<const uint4*>(data), bytes / 16, sink);
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float ms;
    cudaEventElapsedTime(&ms, begin, end);
    best = std::min(best, ms);
  }
  cudaFree(sink);
  return static_cast<double>(bytes) / best * 1e3;
}

std::string WriteConfig(int layers) {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / absl::StrFormat("moed_cuda_bench_%d", getpid());
  std::filesystem::create_directories(path);
  std::ofstream(path / "config.json") << absl::StrFormat(
      R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
          "hidden_size": 2048, "vocab_size": %d, "num_hidden_layers": %d,
          "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
          "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "num_experts": 128,
          "num_experts_per_tok": 8, "norm_topk_prob": true, "moe_intermediate_size": 768,
          "tie_word_embeddings": false})",
      kVocabulary, layers);
  return path.string();
}

template <typename T>
T ValueOf(absl::StatusOr<T> value) {
  ABSL_RAW_CHECK(value.ok(), value.status().ToString().c_str());
  return *std::move(value);
}

// What memory can give, in bytes per second.
struct Rates {
  double vram = 0;
  double link = 0;
  double both = 0;  // link and CPU at the same time
};

// Fetches ahead, as the expert kernels do: without it a core reads a third less.
uint64_t SumOf(const uint64_t* words, size_t count) {
  constexpr size_t kLine = 8;
  constexpr size_t kAhead = 4096;
  uint64_t sum = 0;
  for (size_t line = 0; line + kLine <= count; line += kLine) {
    __builtin_prefetch(words + line + kAhead, 0, 2);
    for (size_t i = 0; i < kLine; ++i) sum += words[line + i];
  }
  return sum;
}

// Bytes per second that `threads` read while the device reads host memory too, and its own.
double RateOfBoth(const backend::Buffer& host, int threads) {
  std::atomic<bool> stop{false};
  std::atomic<int64_t> cpu_bytes{0};
  std::vector<std::thread> readers;
  const size_t part = host.bytes() / 2 / threads / 4096 * 4096;
  for (int i = 0; i < threads; ++i) {
    readers.emplace_back([&, i] {
      const auto* words = reinterpret_cast<const uint64_t*>(host.data() + i * part);
      uint64_t sum = 0;
      while (!stop) {
        sum += SumOf(words, part / 8);
        cpu_bytes += static_cast<int64_t>(part);
      }
      volatile uint64_t sink = sum;
      (void)sink;
    });
  }
  const auto start = std::chrono::steady_clock::now();
  double link_bytes = 0;
  double seconds = 0;
  const size_t half = host.bytes() / 2;
  while (seconds < 0.5) {
    ReadAll<<<132 * 8, 512>>>(reinterpret_cast<const uint4*>(host.data() + half), half / 16,
                              nullptr);
    cudaDeviceSynchronize();
    link_bytes += static_cast<double>(half);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  return (link_bytes + static_cast<double>(cpu_bytes)) / seconds;
}

Rates MeasureRates(backend::Backend& backend) {
  constexpr size_t kBytes = size_t{2} << 30;
  const backend::Buffer vram =
      ValueOf(backend.Allocate(kBytes, backend::MemoryKind::kDevice, "rates"));
  const backend::Buffer host =
      ValueOf(backend.Allocate(kBytes, backend::MemoryKind::kHost, "rates"));
  Rates rates;
  rates.vram = ReadRate(vram.data(), kBytes);
  rates.link = ReadRate(host.data(), kBytes / 4);
  const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) - 2);
  rates.both = RateOfBoth(host, threads);
  std::printf(
      "VRAM read %.0f GB/s, host memory over the link %.1f GB/s, by link and %d threads at "
      "once %.1f GB/s\n",
      rates.vram / 1e9, rates.link / 1e9, threads, rates.both / 1e9);
  return rates;
}

// How experts are stored and where cold ones are computed.
struct Combination {
  std::string format;
  std::string cold_path;
};

backend::ColdPath PathOf(const std::string& name) {
  for (const auto path :
       {backend::ColdPath::kLink, backend::ColdPath::kCpu, backend::ColdPath::kHybrid}) {
    if (ColdPathName(path) == name) return path;
  }
  ABSL_RAW_LOG(FATAL, "cold paths are link, cpu and hybrid");
  return backend::ColdPath::kLink;
}

// Seconds of what was measured first, by residency and batch.
using Baseline = std::map<std::pair<double, int>, double>;

class DecodeBench {
 public:
  DecodeBench(int layers, int context, const Combination& combination, Baseline* baseline)
      : context_(context),
        combination_(combination),
        baseline_(*baseline),
        backend_(ValueOf(backend::CreateCudaBackend({}))),
        checkpoint_(ValueOf(OpenCheckpoint(
            {.directory = WriteConfig(layers), .load_format = LoadFormat::kDummy, .seed = 1}))),
        bf12_(checkpoint_->experts(),
              ValueOf(SampleBf12Format(checkpoint_->config(), checkpoint_->experts()))) {
    Weights weights = ValueOf(LoadWeights(*checkpoint_, *backend_, nullptr));
    num_experts_ = layers * 128;
    const ExpertSource& source = combination.format == "bf12" ? bf12_ : checkpoint_->experts();
    experts_ = ValueOf(ExpertStore::Create(config(),
                                           {.num_slots = num_experts_,
                                            .policy = "recency-frequency",
                                            .io_threads = 14,
                                            .device_tokens = kMaxBatch,
                                            .cold_path = PathOf(combination.cold_path)},
                                           source, *backend_));
    ABSL_RAW_CHECK(experts_->Warm(nullptr).ok(), "warming the slots");
    blocks_each_ = (context + 600) / kKvBlockTokens;
    ABSL_RAW_CHECK(blocks_each_ * kMaxBatch * kKvBlockTokens >= kPrefillTokens,
                   "context too short");
    transformer_ = ValueOf(Transformer::Create(config(),
                                               {.max_num_batched_tokens = kPrefillTokens,
                                                .num_kv_blocks = blocks_each_ * kMaxBatch,
                                                .logit_rows = kMaxBatch},
                                               std::move(weights), *experts_, *backend_));
    for (int i = 0; i < blocks_each_ * kMaxBatch; ++i) blocks_.push_back(i);
    rates_ = MeasureRates(*backend_);
  }

  void Run(double residency, int batch) {
    // As many bytes of VRAM in every format.
    const double bf16_bytes = static_cast<double>(checkpoint_->experts().format().blob_bytes());
    const double slots = residency * num_experts_ * bf16_bytes /
                         static_cast<double>(experts_->format().blob_bytes());
    ABSL_RAW_CHECK(
        experts_->cache().SetBudget(std::min(static_cast<int>(slots), num_experts_)).ok(),
        "budget");
    for (int i = 0; i < 6; ++i) Step(batch);
    const cache::CacheStats before = experts_->cache().Stats();
    constexpr int kSteps = 25;
    std::vector<double> seconds;
    for (int i = 0; i < kSteps; ++i) seconds.push_back(Step(batch));
    std::nth_element(seconds.begin(), seconds.begin() + kSteps / 2, seconds.end());
    Print(residency, batch, seconds[kSteps / 2], before, kSteps);
  }

  // One chunk of kPrefillTokens from position 0 on.
  void Prefill(double residency) {
    StepInput input;
    for (int i = 0; i < kPrefillTokens; ++i) {
      input.token_ids.push_back(static_cast<int32_t>(random_() % kVocabulary));
    }
    input.chunks.push_back(
        {.num_tokens = kPrefillTokens, .context_start = 0, .kv_blocks = blocks_});
    double best = 1e9;
    for (int i = 0; i < 3; ++i) best = std::min(best, Forward(input));
    std::printf("prefill %d  resident %3.0f %%  %7.1f ms  %7.0f tokens/s\n", kPrefillTokens,
                100 * residency, 1e3 * best, kPrefillTokens / best);
    std::fflush(stdout);
  }

 private:
  const ModelConfig& config() const { return checkpoint_->config(); }

  // Seconds of one decode step without sampling.
  double Step(int batch) {
    StepInput input;
    for (int i = 0; i < batch; ++i) {
      input.token_ids.push_back(static_cast<int32_t>(random_() % kVocabulary));
      input.chunks.push_back(
          {.num_tokens = 1,
           .context_start = context_,
           .kv_blocks = std::span(blocks_).subspan(i * blocks_each_, blocks_each_)});
    }
    return Forward(input);
  }

  double Forward(const StepInput& input) {
    const auto start = std::chrono::steady_clock::now();
    absl::Status status = transformer_->Forward(input);
    status.Update(transformer_->EndStep(&shares_));
    status.Update(backend_->Synchronize());
    ABSL_RAW_CHECK(status.ok(), status.ToString().c_str());
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  void Print(double residency, int batch, double seconds, const cache::CacheStats& before,
             int steps) {
    const cache::CacheStats after = experts_->cache().Stats();
    const auto blob_bytes = static_cast<double>(experts_->format().blob_bytes());
    const double dense_bytes = static_cast<double>(ComputeModelSize(config()).dense_bytes) -
                               2.0 * kVocabulary * static_cast<double>(config().hidden);
    const double cold_rate = combination_.cold_path == "link" ? rates_.link : rates_.both;
    double limit = dense_bytes / rates_.vram;
    double hits = 0, misses = 0;
    for (size_t i = 0; i < after.layers.size(); ++i) {
      const double hot =
          static_cast<double>(after.layers[i].hits_total - before.layers[i].hits_total) / steps;
      const double cold =
          static_cast<double>(after.layers[i].misses_total - before.layers[i].misses_total) / steps;
      limit += std::max(hot * blob_bytes / rates_.vram, cold * blob_bytes / cold_rate);
      hits += hot;
      misses += cold;
    }
    const double first = baseline_.try_emplace({residency, batch}, seconds).first->second;
    std::printf(
        "%s %-6s  batch %2d  resident %3.0f %%  hit rate %3.0f %%  by the CPU %3.0f %%  step %7.3f "
        "ms  limit %7.3f ms  ratio %.2f  %7.1f tokens/s  %.2f of the first\n",
        combination_.format.c_str(), combination_.cold_path.c_str(), batch, 100 * residency,
        100 * hits / (hits + misses), 100 * CpuShare(before, after), 1e3 * seconds, 1e3 * limit,
        seconds / limit, batch / seconds, seconds / first);
    std::fflush(stdout);
  }

  // Of the bytes of cold experts.
  static double CpuShare(const cache::CacheStats& before, const cache::CacheStats& after) {
    double cpu = 0;
    double all = 1e-30;
    for (size_t i = 0; i < after.layers.size(); ++i) {
      for (const auto path : {cache::BytePath::kLink, cache::BytePath::kCpu}) {
        const auto p = static_cast<int>(path);
        const auto bytes =
            static_cast<double>(after.layers[i].bytes_total[p] - before.layers[i].bytes_total[p]);
        all += bytes;
        if (path == cache::BytePath::kCpu) cpu += bytes;
      }
    }
    return cpu / all;
  }

  int context_;
  Combination combination_;
  Baseline& baseline_;
  std::unique_ptr<backend::Backend> backend_;
  std::unique_ptr<Checkpoint> checkpoint_;
  EncodedExperts bf12_;
  std::unique_ptr<ExpertStore> experts_;
  std::unique_ptr<Transformer> transformer_;
  int num_experts_ = 0;
  int blocks_each_ = 0;
  std::vector<int32_t> blocks_;
  std::vector<ExpertShare> shares_;
  std::mt19937 random_{7};
  Rates rates_;
};

// "50,25" as {50, 25}; "all", or nothing, as `all`.
std::vector<int> NumbersOf(const char* argument, std::vector<int> all) {
  if (argument == nullptr || std::string(argument) == "all") return all;
  std::vector<int> numbers;
  for (const absl::string_view number : absl::StrSplit(argument, ",")) {
    numbers.push_back(std::atoi(std::string(number).c_str()));
  }
  return numbers;
}

std::vector<std::string> NamesOf(const char* argument, const char* fallback) {
  return absl::StrSplit(argument == nullptr ? fallback : argument, ',');
}

}  // namespace
}  // namespace moed::model

int main(int argc, char** argv) {
  using namespace moed::model;
  const auto argument = [&](int i) { return i < argc ? argv[i] : nullptr; };
  const int layers = argc > 1 ? std::atoi(argv[1]) : 12;
  const int context = argc > 2 ? std::atoi(argv[2]) : 512;
  const std::vector<int> residencies = NumbersOf(argument(3), {100, 75, 50, 25, 0});
  const std::vector<int> batches = NumbersOf(argument(4), {1, 8, 32, 64});
  std::printf("%d layers, context %d\n", layers, context);
  Baseline baseline;
  for (const std::string& format : NamesOf(argument(5), "bf16")) {
    for (const std::string& cold_path : NamesOf(argument(6), "link")) {
      DecodeBench bench(layers, context, {format, cold_path}, &baseline);
      for (const int residency : residencies) {
        for (const int batch : batches) bench.Run(residency / 100.0, batch);
        bench.Prefill(residency / 100.0);
      }
    }
  }
}
