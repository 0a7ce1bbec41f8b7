// Decode steps of a whole model on the GPU against the limit that memory sets, at several shares of
// experts in VRAM: the sum over layers of dense bytes / V + max(hot expert bytes / V, cold expert
// bytes / B), plus lm_head bytes / V. V and B, the rates at which a kernel reads VRAM and mapped
// host memory, are measured in the same run; hot and cold bytes are counted, not assumed. Then
// prefill of one chunk at the same shares. Shape of Qwen3-30B-A3B, random weights and tokens.
//
// usage: cuda_decode_bench [layers, default 12] [context, default 512] [residency in percent]
// [batch]
#include <cuda_runtime.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/base/internal/raw_logging.h"
#include "absl/strings/str_format.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/expert_store.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/model_size.h"
#include "runtime/model/transformer.h"
#include "runtime/model/weights.h"

namespace moed::model {
namespace {

constexpr int kVocabulary = 151936;
constexpr int kMaxBatch = 64;
constexpr int kPrefillTokens = 2048;

__global__ void ReadAll(const uint4* data, size_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const size_t step = size_t(gridDim.x) * blockDim.x;
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint4 value = __ldcs(data + i);
    sum += value.x ^ value.y ^ value.z ^ value.w;
  }
  if (sum == 0x12345678u) *sink = sum;
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

class DecodeBench {
 public:
  DecodeBench(int layers, int context)
      : context_(context),
        backend_(ValueOf(backend::CreateCudaBackend({}))),
        checkpoint_(ValueOf(OpenCheckpoint(
            {.directory = WriteConfig(layers), .load_format = LoadFormat::kDummy, .seed = 1}))) {
    Weights weights = ValueOf(LoadWeights(*checkpoint_, *backend_, nullptr));
    num_experts_ = layers * 128;
    experts_ = ValueOf(ExpertStore::Create(config(),
                                           {.num_slots = num_experts_,
                                            .policy = "recency-frequency",
                                            .io_threads = 14,
                                            .device_tokens = kMaxBatch},
                                           checkpoint_->experts(), *backend_));
    ABSL_RAW_CHECK(experts_->Warm(nullptr).ok(), "warming the slots");
    blocks_each_ = (context + 600) / kKvBlockTokens;
    transformer_ = ValueOf(Transformer::Create(config(),
                                               {.max_num_batched_tokens = kPrefillTokens,
                                                .num_kv_blocks = blocks_each_ * kMaxBatch,
                                                .logit_rows = kMaxBatch},
                                               std::move(weights), *experts_, *backend_));
    for (int i = 0; i < blocks_each_ * kMaxBatch; ++i) blocks_.push_back(i);
    MeasureRates();
  }

  void Run(double residency, int batch) {
    ABSL_RAW_CHECK(experts_->cache().SetBudget(static_cast<int>(residency * num_experts_)).ok(),
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

  void MeasureRates() {
    constexpr size_t kBytes = size_t{2} << 30;
    const backend::Buffer vram =
        ValueOf(backend_->Allocate(kBytes, backend::MemoryKind::kDevice, "rates"));
    const backend::Buffer host =
        ValueOf(backend_->Allocate(kBytes, backend::MemoryKind::kHost, "rates"));
    vram_rate_ = ReadRate(vram.data(), kBytes);
    link_rate_ = ReadRate(host.data(), kBytes / 4);
    std::printf("VRAM read %.0f GB/s, host memory over the link %.1f GB/s\n", vram_rate_ / 1e9,
                link_rate_ / 1e9);
  }

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
    absl::Status status = transformer_->Forward(input, &shares_);
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
    double limit = dense_bytes / vram_rate_;
    double hits = 0, misses = 0;
    for (size_t i = 0; i < after.layers.size(); ++i) {
      const double hot =
          static_cast<double>(after.layers[i].hits_total - before.layers[i].hits_total) / steps;
      const double cold =
          static_cast<double>(after.layers[i].misses_total - before.layers[i].misses_total) / steps;
      limit += std::max(hot * blob_bytes / vram_rate_, cold * blob_bytes / link_rate_);
      hits += hot;
      misses += cold;
    }
    std::printf(
        "batch %2d  resident %3.0f %%  hit rate %3.0f %%  step %7.3f ms  limit %7.3f ms  ratio "
        "%.2f  %7.1f tokens/s\n",
        batch, 100 * residency, 100 * hits / (hits + misses), 1e3 * seconds, 1e3 * limit,
        seconds / limit, batch / seconds);
    std::fflush(stdout);
  }

  int context_;
  std::unique_ptr<backend::Backend> backend_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<ExpertStore> experts_;
  std::unique_ptr<Transformer> transformer_;
  int num_experts_ = 0;
  int blocks_each_ = 0;
  std::vector<int32_t> blocks_;
  std::vector<ExpertShare> shares_;
  std::mt19937 random_{7};
  double vram_rate_ = 0;
  double link_rate_ = 0;
};

}  // namespace
}  // namespace moed::model

int main(int argc, char** argv) {
  const int layers = argc > 1 ? std::atoi(argv[1]) : 12;
  const int context = argc > 2 ? std::atoi(argv[2]) : 512;
  moed::model::DecodeBench bench(layers, context);
  std::printf("%d layers, context %d\n", layers, context);
  const std::vector<int> residencies =
      argc > 3 ? std::vector<int>{std::atoi(argv[3])} : std::vector<int>{100, 75, 50, 25, 0};
  const std::vector<int> batches =
      argc > 4 ? std::vector<int>{std::atoi(argv[4])} : std::vector<int>{1, 8, 32, 64};
  for (const int residency : residencies) {
    for (const int batch : batches) bench.Run(residency / 100.0, batch);
    bench.Prefill(residency / 100.0);
  }
}
