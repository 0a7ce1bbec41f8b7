// Device-driven experts on a GPU against the CPU's, in every format and on every cold path: the
// same edits and routing give the same uses and sums, and a slot that was filled on the way holds
// its expert bit for bit.
#include "runtime/backend/device_experts.h"

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/bf12.h"
#include "runtime/backend/cold_division.h"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/backend/cuda/cuda_backend.h"

namespace moed::backend {
namespace {

constexpr int kExperts = 9;
constexpr int kTopK = 3;
constexpr int kSlots = 5;
constexpr int kMaxTokens = 64;
constexpr int kLayers = 2;

// Two layers of experts on one backend.
class Device {
 public:
  Device(Backend& backend, const ExpertFormat& format, ColdPath cold_path, int timeout_ms = 3000)
      : backend_(backend),
        format_(format),
        bf16_(ExpertFormatKind::kBF16, format.hidden(), format.intermediate()),
        blob_bytes_(format.blob_bytes()) {
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
                                         .slots = slots_.data(),
                                         .cold_path = cold_path,
                                         .cold_timeout_ms = timeout_ms})
                   .value();
  }

  DeviceExperts& experts() { return *experts_; }

  // The residual after a step of layer `layer`, from zeros.
  std::vector<float> RunStep(int layer, const std::vector<int32_t>& ids) {
    EXPECT_TRUE(experts_->BeginStep(static_cast<int64_t>(ids.size()) / kTopK).ok());
    std::vector<float> sums = Run(layer, ids);
    const absl::Status ended = experts_->EndStep();
    EXPECT_TRUE(ended.ok()) << ended;
    return sums;
  }

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

  struct Routed {
    std::vector<int32_t> ids;
    std::vector<float> weights;
    std::vector<float> sums;  // added to the residual
  };

  // A step of `tokens` in layer `layer`, whose experts a random router chooses.
  Routed RunRoutedStep(int layer, const RouterSpec& spec, int tokens, uint32_t seed) {
    EXPECT_TRUE(experts_->BeginStep(tokens).ok());
    Routed routed = RouteAndRun(layer, spec, tokens, seed);
    const absl::Status ended = experts_->EndStep();
    EXPECT_TRUE(ended.ok()) << ended;
    return routed;
  }

  Routed RouteAndRun(int layer, const RouterSpec& spec, int tokens, uint32_t seed) {
    const int64_t rows = experts_->PaddedTokens(tokens);
    const int64_t hidden = format_.hidden();
    const std::vector<int32_t> blocks = {0, 1};
    const AttentionSegment segment = {0, tokens, 0, blocks};
    const std::vector<int32_t> token_ids(rows);
    backend_.BeginStep(token_ids, {&segment, 1});
    std::mt19937 random(seed);
    std::vector<float> router(kExperts * hidden), norm(hidden, 1.0f), x(rows * hidden, 1.0f);
    for (float& value : router) value = static_cast<float>(random() % 200) / 1000 - 0.1f;
    for (int64_t i = 0; i < tokens * hidden; ++i) {
      x[i] = static_cast<float>(random() % 200) / 100 - 1;
    }
    const Buffer router_memory = Put(router), norm_memory = Put(norm), residual = Put(x);
    const Buffer normed = Put(std::vector<BFloat16>(x.size())), normed_f32 = Put(x);
    const Buffer logits = Put(std::vector<float>(rows * kExperts));
    const Buffer weights = Put(std::vector<float>(rows * kTopK));
    const Tensor residual_tensor(residual.data(), DType::kF32, {rows, hidden});
    const Tensor normed_tensor(normed.data(), DType::kBF16, {rows, hidden});
    const Tensor weights_tensor(weights.data(), DType::kF32, {rows, kTopK});
    experts_->Route(layer, {.spec = spec,
                            .x = residual_tensor,
                            .norm_weight = Tensor(norm_memory.data(), DType::kF32, {hidden}),
                            .norm_epsilon = 1e-6f,
                            .router = Tensor(router_memory.data(), DType::kF32, {kExperts, hidden}),
                            .normed = normed_tensor,
                            .normed_f32 = Tensor(normed_f32.data(), DType::kF32, {rows, hidden}),
                            .logits = Tensor(logits.data(), DType::kF32, {rows, kExperts}),
                            .ids = experts_->ids(layer, rows),
                            .weights = weights_tensor});
    experts_->Run(layer, weights_tensor, normed_tensor, residual_tensor);
    experts_->FinishStep();
    EXPECT_TRUE(backend_.Synchronize().ok());
    const std::span<const int32_t> ids = experts_->StepIds(layer, tokens);
    Routed routed = {
        {ids.begin(), ids.end()}, Get(weights, tokens * kTopK), Get(residual, tokens * hidden)};
    for (int64_t i = 0; i < tokens * hidden; ++i) routed.sums[i] -= x[i];
    return routed;
  }

  // Whether `slot` holds the expert; the padding of rows does not count.
  bool Holds(int slot, int layer, int expert) {
    std::vector<std::byte> content(blob_bytes_);
    EXPECT_TRUE(backend_.CopyToHost(slots_.data() + slot * blob_bytes_, content).ok());
    return Values(content.data()) ==
           Values(host_.data() + (layer * kExperts + expert) * blob_bytes_);
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
  std::vector<float> Get(const Buffer& memory, size_t count) {
    std::vector<float> values(count);
    EXPECT_TRUE(backend_.CopyToHost(memory.data(), std::as_writable_bytes(std::span(values))).ok());
    return values;
  }
  // All values of a blob, [3][I][H].
  std::vector<BFloat16> Values(const std::byte* blob) const {
    const int64_t hidden = format_.hidden();
    const int64_t width = format_.row_values();
    std::vector<BFloat16> values;
    std::vector<BFloat16> row(width);
    for (const ExpertPart part : {ExpertPart::kGate, ExpertPart::kUp, ExpertPart::kDown}) {
      for (int64_t i = 0; i < format_.intermediate(); ++i) {
        if (format_.kind() == ExpertFormatKind::kBF12) {
          DecodeBf12(format_, blob, part, i, 1, 0, width, row.data(), width);
        } else {
          const auto* neuron = reinterpret_cast<const BFloat16*>(blob + format_.neuron_offset(i));
          std::copy_n(neuron + static_cast<int>(part) * width, width, row.begin());
        }
        values.insert(values.end(), row.begin(), row.begin() + hidden);
      }
    }
    return values;
  }
  // Normal values, a few of them far outside of any row's window of exponents.
  void FillExperts() {
    std::mt19937 random(3);
    std::normal_distribution<float> normal(0, 0.06f);
    std::vector<std::byte> blob(bf16_.blob_bytes());
    for (int i = 0; i < kLayers * kExperts; ++i) {
      auto* values = reinterpret_cast<BFloat16*>(blob.data());
      for (size_t v = 0; v < blob.size() / 2; ++v) {
        const float outlier = random() % 2 == 0 ? 30.0f : 1e-9f;
        values[v] = ToBFloat16(random() % 2000 == 0 ? outlier : normal(random));
      }
      // A neuron with more escapes than its header has room for.
      for (int v = 0; v < 30; ++v) values[v * bf16_.hidden() / 30] = 0;
      std::byte* const target = host_.data() + i * blob_bytes_;
      if (format_.kind() == ExpertFormatKind::kBF16) {
        std::copy(blob.begin(), blob.end(), target);
      } else {
        EXPECT_TRUE(EncodeBf12(bf16_, blob, format_, {target, blob_bytes_}));
      }
    }
  }

  Backend& backend_;
  ExpertFormat format_;
  ExpertFormat bf16_;
  size_t blob_bytes_;
  Buffer host_;
  Buffer slots_;
  std::unique_ptr<DeviceExperts> experts_;
};

using Shape = std::pair<int, int>;

ExpertFormat FormatOf(ExpertFormatKind kind, const Shape& shape) {
  const int escapes = kind == ExpertFormatKind::kBF12 ? Bf12TileEscapeCapacity(200) : 0;
  return ExpertFormat(kind, shape.first, shape.second, escapes);
}

class CudaDeviceExpertsTest
    : public ::testing::TestWithParam<std::tuple<Shape, ExpertFormatKind, ColdPath>> {
 protected:
  void SetUp() override {
    if (!CudaAvailable()) GTEST_SKIP() << "no GPU on this machine, or no CUDA in this build";
    cpu_ = CreateCpuBackend({.num_threads = 2}).value();
    cuda_ = CreateCudaBackend({}).value();
    const auto& [shape, kind, cold_path] = GetParam();
    const ExpertFormat format = FormatOf(kind, shape);
    on_cpu_ = std::make_unique<Device>(*cpu_, format, ColdPath::kLink);
    on_cuda_ = std::make_unique<Device>(*cuda_, format, cold_path);
  }

  void Apply(const std::vector<ExpertEdit>& edits) {
    EXPECT_TRUE(on_cpu_->experts().Apply(edits).ok());
    EXPECT_TRUE(on_cuda_->experts().Apply(edits).ok());
  }

  // A step of `tokens`, whose experts are drawn at random, on both; then every expert that the GPU
  // read from a slot or wrote into one must be what that slot holds.
  void Step(int layer, int tokens) { StepAmong(kExperts, layer, tokens); }

  // The same where the first of a token's experts is one of so many.
  void StepAmong(int experts, int layer, int tokens) {
    std::vector<int32_t> ids;
    for (int t = 0; t < tokens; ++t) {
      const auto first = static_cast<int32_t>(random_() % experts);
      for (int k = 0; k < kTopK; ++k) ids.push_back((first + k * 2) % kExperts);
    }
    const std::vector<float> want = on_cpu_->RunStep(layer, ids);
    EXPECT_LE(Distance(on_cuda_->RunStep(layer, ids), want), 5e-3) << tokens << " tokens";
    CheckUses(layer);
  }

  // The same of tokens whose experts the router chooses.
  void RoutedStep(int layer, const RouterSpec& spec, int tokens) {
    const auto seed = static_cast<uint32_t>(random_());
    const Device::Routed want = on_cpu_->RunRoutedStep(layer, spec, tokens, seed);
    const Device::Routed got = on_cuda_->RunRoutedStep(layer, spec, tokens, seed);
    EXPECT_EQ(got.ids, want.ids);
    EXPECT_LE(Distance(got.weights, want.weights), 1e-4);
    EXPECT_LE(Distance(got.sums, want.sums), 1e-2);
    CheckUses(layer);
  }

  static double Distance(const std::vector<float>& got, const std::vector<float>& want) {
    double difference = 0, size = 1e-30;
    for (size_t i = 0; i < want.size(); ++i) {
      difference += std::pow(double{got[i]} - want[i], 2);
      size += std::pow(want[i], 2);
    }
    return std::sqrt(difference / size);
  }

  void CheckUses(int layer) {
    int filled_on_cpu = 0, filled_on_cuda = 0, cut = 0;
    for (int expert = 0; expert < kExperts; ++expert) {
      const ExpertUse cpu_use = on_cpu_->experts().Uses(layer)[expert];
      const ExpertUse use = on_cuda_->experts().Uses(layer)[expert];
      // Which of several experts takes an offered slot is not determined; all else is.
      EXPECT_EQ(use.kind == ExpertUseKind::kUnused, cpu_use.kind == ExpertUseKind::kUnused);
      filled_on_cpu += cpu_use.kind == ExpertUseKind::kFilled;
      filled_on_cuda += use.kind == ExpertUseKind::kFilled;
      EXPECT_TRUE(use.slot < 0 || on_cuda_->Holds(use.slot, layer, expert)) << expert;
      CheckWhoComputed(use);
      cut += use.cpu_neurons > 0 && use.cpu_neurons < std::get<0>(GetParam()).second ? 1 : 0;
    }
    const bool hybrid = std::get<2>(GetParam()) == ColdPath::kHybrid;
    EXPECT_LE(cut, hybrid ? 1 : 0);
    // Beside the CPU a fill may wait.
    EXPECT_TRUE(hybrid || filled_on_cuda == filled_on_cpu);
    filled_ += filled_on_cuda;
  }

  void CheckWhoComputed(const ExpertUse& use) {
    const int neurons = std::get<0>(GetParam()).second;
    const ColdPath cold_path = std::get<2>(GetParam());
    const bool cold = use.kind == ExpertUseKind::kCold;
    EXPECT_LE(use.cpu_neurons, cold && cold_path != ColdPath::kLink ? neurons : 0);
    if (cold && cold_path == ColdPath::kCpu) {
      EXPECT_EQ(use.cpu_neurons, neurons);
    }
    EXPECT_EQ((neurons - use.cpu_neurons) % kColdTileNeurons, 0);
  }

  // To every expert of the layer.
  void OfferEverySlot(int layer) {
    std::vector<ExpertEdit> edits;
    for (int expert = 0; expert < kExperts; ++expert) {
      edits.push_back({.kind = ExpertEditKind::kAllowFill, .layer = layer, .expert = expert});
    }
    for (int slot = 0; slot < kSlots; ++slot) {
      edits.push_back(
          {.kind = ExpertEditKind::kOffer, .layer = layer, .slot = slot, .generation = 4});
    }
    Apply(edits);
  }

  std::mt19937 random_{11};
  std::unique_ptr<Backend> cpu_;
  std::unique_ptr<Backend> cuda_;
  std::unique_ptr<Device> on_cpu_;
  std::unique_ptr<Device> on_cuda_;
  int filled_ = 0;  // on the GPU
};

TEST_P(CudaDeviceExpertsTest, ComputesAndFillsWhereverExpertsLie) {
  for (const int tokens : {1, 2, 24}) Step(0, tokens);  // all cold
  OfferEverySlot(1);
  for (const int tokens : {1, 3, 24, 1, 20}) Step(1, tokens);  // fills, then hits and cold
  for (int step = 0; step < 30; ++step) Step(1, 1);            // by now those that waited, too
  EXPECT_EQ(filled_, kSlots);
}

// An expert's tokens fill a task and a part of the next, several that are joined, and more.
TEST_P(CudaDeviceExpertsTest, ReadsAnExpertOfManyTokensWhereverItLies) {
  std::vector<ExpertEdit> edits;
  for (int slot = 0; slot < kSlots; ++slot) {
    edits.push_back({.kind = ExpertEditKind::kOffer, .layer = 0, .slot = slot, .generation = 4});
    edits.push_back({.kind = ExpertEditKind::kAllowFill, .layer = 0, .expert = 2 * slot});
  }
  Apply(edits);
  Step(0, 24);  // fills experts 0, 2, 4, 6 and 8
  for (const int tokens : {9, 16, 17, 31, 33, 64}) StepAmong(1, 0, tokens);
  for (const int tokens : {12, 40, 64}) Step(0, tokens);
}

TEST_P(CudaDeviceExpertsTest, RunsWhatTheRouterChose) {
  using Scoring = RouterSpec::Scoring;
  const RouterSpec specs[] = {
      {.normalize_topk = true, .num_experts = kExperts, .top_k = kTopK},
      {.num_experts = kExperts, .top_k = kTopK},
      {.softmax_after_topk = true, .num_experts = kExperts, .top_k = kTopK},
      {.scoring = Scoring::kSigmoid, .scale = 2.5f, .num_experts = kExperts, .top_k = kTopK}};
  for (const RouterSpec& spec : specs) RoutedStep(0, spec, 1);  // all cold
  OfferEverySlot(1);
  for (int round = 0; round < 3; ++round) {  // fills, then hits and cold
    for (const RouterSpec& spec : specs) RoutedStep(1, spec, 1);
  }
  for (const int tokens : {2, 7, 16, 33}) RoutedStep(1, specs[tokens % 4], tokens);
}

// From no expert in VRAM to half of them, while the share of the link moves: whole experts and
// parts on both sides, waiting fills, and steps that leave the CPU nothing.
TEST_P(CudaDeviceExpertsTest, DividesWhatTheRouterChoseForAToken) {
  const RouterSpec spec = {.normalize_topk = true, .num_experts = kExperts, .top_k = kTopK};
  for (int step = 0; step < 10; ++step) RoutedStep(0, spec, 1);
  OfferEverySlot(1);
  for (int step = 0; step < 60; ++step) RoutedStep(1, spec, 1);
  EXPECT_EQ(filled_, kSlots);
}

// Steps of one token, of several, of more than a tile has, in turn: the share of the link moves.
TEST_P(CudaDeviceExpertsTest, GivesTheSameSumsWhileTheShareMoves) {
  for (int round = 0; round < 20; ++round) {
    for (const int tokens : {1, 5, 24}) Step(round % kLayers, tokens);
  }
}

std::string NameOf(const ::testing::TestParamInfo<CudaDeviceExpertsTest::ParamType>& test) {
  const auto& [shape, kind, cold_path] = test.param;
  const char* const paths[] = {"link", "cpu", "hybrid"};
  return std::to_string(shape.first) + "x" + std::to_string(shape.second) + "_" +
         std::string(ExpertFormatName(kind)) + "_" + paths[static_cast<int>(cold_path)];
}

INSTANTIATE_TEST_SUITE_P(
    HiddenAndIntermediate, CudaDeviceExpertsTest,
    ::testing::Combine(::testing::Values(Shape(40, 16), Shape(128, 40), Shape(256, 64),
                                         Shape(2048, 40), Shape(2880, 48), Shape(4096, 40),
                                         Shape(7168, 16)),
                       ::testing::Values(ExpertFormatKind::kBF16, ExpertFormatKind::kBF12),
                       ::testing::Values(ColdPath::kLink, ColdPath::kCpu, ColdPath::kHybrid)),
    NameOf);

// Workers that do not look are what a stopped process looks like to the GPU.
TEST(CudaColdPathTest, AnAnswerThatDoesNotComeIsATypedErrorForGood) {
  if (!CudaAvailable()) GTEST_SKIP() << "no GPU on this machine, or no CUDA in this build";
  const std::unique_ptr<Backend> backend = CreateCudaBackend({}).value();
  Device device(*backend, FormatOf(ExpertFormatKind::kBF16, Shape(256, 64)), ColdPath::kCpu,
                /*timeout_ms=*/200);
  const std::vector<int32_t> ids = {0, 1, 2};
  device.Run(0, ids);  // outside of a step
  EXPECT_EQ(device.experts().EndStep().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(device.experts().BeginStep(1).code(), absl::StatusCode::kUnavailable);
  device.Run(1, ids);
  EXPECT_EQ(device.experts().EndStep().code(), absl::StatusCode::kUnavailable);
}

TEST(CudaColdPathTest, ARoutedTokenWithoutAnAnswerIsATypedErrorForGood) {
  if (!CudaAvailable()) GTEST_SKIP() << "no GPU on this machine, or no CUDA in this build";
  const std::unique_ptr<Backend> backend = CreateCudaBackend({}).value();
  const RouterSpec spec = {.num_experts = kExperts, .top_k = kTopK};
  for (const ExpertFormatKind format : {ExpertFormatKind::kBF16, ExpertFormatKind::kBF12}) {
    for (const ColdPath cold_path : {ColdPath::kCpu, ColdPath::kHybrid}) {
      Device device(*backend, FormatOf(format, Shape(256, 64)), cold_path, /*timeout_ms=*/50);
      device.RouteAndRun(0, spec, /*tokens=*/1, /*seed=*/1);  // outside of a step
      EXPECT_EQ(device.experts().EndStep().code(), absl::StatusCode::kUnavailable);
      EXPECT_EQ(device.experts().BeginStep(1).code(), absl::StatusCode::kUnavailable);
      device.RouteAndRun(1, spec, /*tokens=*/1, /*seed=*/2);
      EXPECT_EQ(device.experts().EndStep().code(), absl::StatusCode::kUnavailable);
    }
  }
}

}  // namespace
}  // namespace moed::backend
