// Device-driven experts on a GPU against the CPU's: the same edits and routing give the same uses
// and sums, and a slot that was filled on the way holds its expert bit for bit.
#include "runtime/backend/device_experts.h"

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/backend/cuda/cuda_backend.h"

namespace moed::backend {
namespace {

constexpr int kExperts = 9;
constexpr int kTopK = 3;
constexpr int kSlots = 5;
constexpr int kMaxTokens = 24;
constexpr int kLayers = 2;

// Two layers of experts on one backend.
class Device {
 public:
  Device(Backend& backend, const ExpertFormat& format)
      : backend_(backend), format_(format), blob_bytes_(format.blob_bytes()) {
    host_ = Allocate(kLayers * kExperts * blob_bytes_, MemoryKind::kHost);
    slots_ = Allocate(kSlots * blob_bytes_, MemoryKind::kDevice);
    FillExperts();
    experts_ = backend
                   .CreateDeviceExperts({.format = format,
                                         .experts_per_layer = {kExperts, kExperts},
                                         .top_k = kTopK,
                                         .max_tokens = kMaxTokens,
                                         .num_slots = kSlots,
                                         .host_experts = host_.data(),
                                         .slots = slots_.data()})
                   .value();
  }

  DeviceExperts& experts() { return *experts_; }

  // The residual after a step of layer `layer`, from zeros.
  std::vector<float> Run(int layer, const std::vector<int32_t>& ids) {
    const auto tokens = static_cast<int>(ids.size()) / kTopK;
    const auto rows = experts_->PaddedTokens(tokens);
    const std::vector<int32_t> blocks = {0, 1};
    const AttentionSegment segment = {0, tokens, 0, blocks};
    const std::vector<int32_t> token_ids(rows);
    backend_.BeginStep(token_ids, {&segment, 1});
    std::mt19937 random(static_cast<uint32_t>(tokens));
    std::vector<BFloat16> x(rows * format_.hidden());
    for (BFloat16& value : x) value = ToBFloat16(static_cast<float>(random() % 200) / 100 - 1);
    // Apart from x, whose padding differs between backends.
    random.seed(static_cast<uint32_t>(tokens) + 1);
    std::vector<float> weights(rows * kTopK);
    for (float& value : weights) value = static_cast<float>(random() % 100) / 100;
    Write(ids, experts_->ids(layer, rows).As<std::byte>());
    const Buffer x_memory = Put(x);
    const Buffer weights_memory = Put(weights);
    const Buffer residual = Put(std::vector<float>(x.size()));
    experts_->Run(layer, Tensor(weights_memory.data(), DType::kF32, {rows, kTopK}),
                  Tensor(x_memory.data(), DType::kBF16, {rows, format_.hidden()}),
                  Tensor(residual.data(), DType::kF32, {rows, format_.hidden()}));
    experts_->FinishStep();
    EXPECT_TRUE(backend_.Synchronize().ok());
    std::vector<float> sums(tokens * format_.hidden());
    EXPECT_TRUE(backend_.CopyToHost(residual.data(), std::as_writable_bytes(std::span(sums))).ok());
    return sums;
  }

  // Whether `slot` holds the expert; the padding of rows does not count.
  bool Holds(int slot, int layer, int expert) {
    std::vector<BFloat16> content(blob_bytes_ / 2);
    EXPECT_TRUE(backend_
                    .CopyToHost(slots_.data() + slot * blob_bytes_,
                                std::as_writable_bytes(std::span(content)))
                    .ok());
    const auto* stored =
        reinterpret_cast<const BFloat16*>(host_.data() + (layer * kExperts + expert) * blob_bytes_);
    for (int64_t row = 0; row < 3 * format_.intermediate(); ++row) {
      for (int64_t i = 0; i < format_.hidden(); ++i) {
        const int64_t at = row * format_.row_values() + i;
        if (content[at] != stored[at]) return false;
      }
    }
    return true;
  }

 private:
  Buffer Allocate(size_t bytes, MemoryKind kind) {
    return backend_.Allocate(bytes, kind, "a test").value();
  }
  template <typename T>
  void Write(const std::vector<T>& values, std::byte* memory) {
    EXPECT_TRUE(backend_.CopyFromHost(std::as_bytes(std::span(values)), memory).ok());
  }
  template <typename T>
  Buffer Put(const std::vector<T>& values) {
    Buffer memory = Allocate(values.size() * sizeof(T), MemoryKind::kDevice);
    Write(values, memory.data());
    return memory;
  }
  void FillExperts() {
    std::mt19937 random(3);
    auto* values = reinterpret_cast<BFloat16*>(host_.data());
    for (size_t i = 0; i < host_.bytes() / 2; ++i) {
      values[i] = ToBFloat16((static_cast<float>(random() % 200) / 100 - 1) * 0.1f);
    }
  }

  Backend& backend_;
  ExpertFormat format_;
  size_t blob_bytes_;
  Buffer host_;
  Buffer slots_;
  std::unique_ptr<DeviceExperts> experts_;
};

class CudaDeviceExpertsTest : public ::testing::TestWithParam<std::pair<int, int>> {
 protected:
  void SetUp() override {
    if (!CudaAvailable()) GTEST_SKIP() << "no GPU on this machine, or no CUDA in this build";
    cpu_ = CreateCpuBackend({.num_threads = 2}).value();
    cuda_ = CreateCudaBackend({}).value();
    const ExpertFormat format(ExpertFormatKind::kBF16, GetParam().first, GetParam().second);
    on_cpu_ = std::make_unique<Device>(*cpu_, format);
    on_cuda_ = std::make_unique<Device>(*cuda_, format);
  }

  void Apply(const std::vector<ExpertEdit>& edits) {
    EXPECT_TRUE(on_cpu_->experts().Apply(edits).ok());
    EXPECT_TRUE(on_cuda_->experts().Apply(edits).ok());
  }

  // A step of `tokens`, whose experts are drawn at random, on both; then every expert that the GPU
  // read from a slot or wrote into one must be what that slot holds.
  void Step(int layer, int tokens) {
    std::vector<int32_t> ids;
    for (int t = 0; t < tokens; ++t) {
      const auto first = static_cast<int32_t>(random_() % kExperts);
      for (int k = 0; k < kTopK; ++k) ids.push_back((first + k * 2) % kExperts);
    }
    const std::vector<float> want = on_cpu_->Run(layer, ids);
    const std::vector<float> got = on_cuda_->Run(layer, ids);
    double difference = 0, size = 1e-30;
    for (size_t i = 0; i < want.size(); ++i) {
      difference += std::pow(double{got[i]} - want[i], 2);
      size += std::pow(want[i], 2);
    }
    EXPECT_LE(std::sqrt(difference / size), 5e-3) << tokens << " tokens";
    int filled_on_cpu = 0, filled_on_cuda = 0;
    for (int expert = 0; expert < kExperts; ++expert) {
      const ExpertUse cpu_use = on_cpu_->experts().Uses(layer)[expert];
      const ExpertUse use = on_cuda_->experts().Uses(layer)[expert];
      // Which of several experts takes an offered slot is not determined; all else is.
      EXPECT_EQ(use.kind == ExpertUseKind::kUnused, cpu_use.kind == ExpertUseKind::kUnused);
      filled_on_cpu += cpu_use.kind == ExpertUseKind::kFilled;
      filled_on_cuda += use.kind == ExpertUseKind::kFilled;
      EXPECT_TRUE(use.slot < 0 || on_cuda_->Holds(use.slot, layer, expert)) << expert;
    }
    EXPECT_EQ(filled_on_cuda, filled_on_cpu);
  }

  std::mt19937 random_{11};
  std::unique_ptr<Backend> cpu_;
  std::unique_ptr<Backend> cuda_;
  std::unique_ptr<Device> on_cpu_;
  std::unique_ptr<Device> on_cuda_;
};

TEST_P(CudaDeviceExpertsTest, ComputesAndFillsWhereverExpertsLie) {
  for (const int tokens : {1, 2, 24}) Step(0, tokens);  // all cold
  std::vector<ExpertEdit> edits;
  for (int expert = 0; expert < kExperts; ++expert) {
    edits.push_back({.kind = ExpertEditKind::kAllowFill, .layer = 1, .expert = expert});
  }
  for (int slot = 0; slot < kSlots; ++slot) {
    edits.push_back({.kind = ExpertEditKind::kOffer, .layer = 1, .slot = slot, .generation = 4});
  }
  Apply(edits);
  for (const int tokens : {1, 3, 24, 1, 20}) Step(1, tokens);  // fills, then hits and cold
}

INSTANTIATE_TEST_SUITE_P(HiddenAndIntermediate, CudaDeviceExpertsTest,
                         ::testing::Values(std::pair(40, 16), std::pair(256, 64),
                                           std::pair(2048, 40), std::pair(2880, 48)),
                         [](const auto& test) {
                           return std::to_string(test.param.first) + "x" +
                                  std::to_string(test.param.second);
                         });

}  // namespace
}  // namespace moed::backend
