// Device-driven experts with the CPU as the device: every cold path gives the sums of the path over
// the link, and says truly what was computed where.
#include "runtime/backend/cpu/device_experts.h"

#include <cmath>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/cold_division.h"
#include "runtime/backend/cpu/cpu_backend.h"

namespace moed::backend {
namespace {

constexpr int kExperts = 9;
constexpr int kTopK = 3;
constexpr int kSlots = 4;
constexpr int kMaxTokens = 24;
constexpr int64_t kHidden = 96;
constexpr int64_t kNeurons = 84;  // no whole number of tiles

class CpuDeviceExpertsTest : public testing::Test {
 protected:
  CpuDeviceExpertsTest() {
    const size_t bytes = format_.blob_bytes();
    host_ = backend_->Allocate(kExperts * bytes, MemoryKind::kHost, "a test").value();
    auto* values = reinterpret_cast<BFloat16*>(host_.data());
    for (size_t i = 0; i < host_.bytes() / 2; ++i) {
      values[i] = ToBFloat16((static_cast<float>(random_() % 200) / 100 - 1) * 0.2f);
    }
  }

  struct Path {
    Buffer slots;
    std::unique_ptr<DeviceExperts> experts;
  };
  Path Create(ColdPath cold_path, int timeout_ms = 3000) {
    Path path;
    path.slots =
        backend_->Allocate(kSlots * format_.blob_bytes(), MemoryKind::kDevice, "a test").value();
    path.experts = backend_
                       ->CreateDeviceExperts({.format = format_,
                                              .experts_per_layer = {kExperts},
                                              .top_k = kTopK,
                                              .max_tokens = kMaxTokens,
                                              .num_slots = kSlots,
                                              .host_experts = host_.data(),
                                              .slots = path.slots.data(),
                                              .cold_path = cold_path,
                                              .cold_threads = 2,
                                              .cold_timeout_ms = timeout_ms})
                       .value();
    return path;
  }

  // Draws a step; RunStep then gives it to any number of paths.
  void Draw(int tokens) {
    ids_.clear();
    for (int t = 0; t < tokens; ++t) {
      const auto first = static_cast<int32_t>(random_() % kExperts);
      for (int k = 0; k < kTopK; ++k) ids_.push_back((first + 2 * k) % kExperts);
    }
    x_.resize(tokens * kHidden);
    for (BFloat16& value : x_) value = ToBFloat16(static_cast<float>(random_() % 200) / 100 - 1);
    weights_.resize(tokens * kTopK);
    for (float& weight : weights_) weight = static_cast<float>(random_() % 100) / 100;
  }

  std::vector<float> Run(DeviceExperts& experts) {
    const auto tokens = static_cast<int64_t>(ids_.size()) / kTopK;
    std::copy(ids_.begin(), ids_.end(), experts.ids(0, tokens).As<int32_t>());
    std::vector<float> residual(tokens * kHidden, 0.5f);
    experts.Run(0, Tensor(weights_.data(), DType::kF32, {tokens, kTopK}),
                Tensor(x_.data(), DType::kBF16, {tokens, kHidden}),
                Tensor(residual.data(), DType::kF32, {tokens, kHidden}));
    experts.FinishStep();
    return residual;
  }

  const std::unique_ptr<Backend> backend_ = CreateCpuBackend({.num_threads = 2}).value();
  const ExpertFormat format_{ExpertFormatKind::kBF16, kHidden, kNeurons};
  std::mt19937 random_{3};
  Buffer host_;
  std::vector<int32_t> ids_;
  std::vector<BFloat16> x_;
  std::vector<float> weights_;
};

double RelativeDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0;
  double size = 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(double{a[i]} - b[i], 2);
    size += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(difference / size);
}

TEST_F(CpuDeviceExpertsTest, EveryColdPathGivesTheSameSums) {
  const Path link = Create(ColdPath::kLink);
  for (const ColdPath cold_path : {ColdPath::kCpu, ColdPath::kHybrid}) {
    const Path path = Create(cold_path);
    for (int round = 0; round < 60; ++round) {
      Draw(1 + static_cast<int>(random_() % kMaxTokens));
      ASSERT_TRUE(path.experts->BeginStep(ids_.size() / kTopK).ok());
      const std::vector<float> sums = Run(*path.experts);
      ASSERT_TRUE(path.experts->EndStep().ok());
      ASSERT_LE(RelativeDifference(sums, Run(*link.experts)), 2e-3) << "round " << round;
    }
  }
}

TEST_F(CpuDeviceExpertsTest, FillsGoOverTheLinkAndTheTraceSaysWhatTheCpuDid) {
  for (const ColdPath cold_path : {ColdPath::kCpu, ColdPath::kHybrid}) {
    const Path path = Create(cold_path);
    std::vector<ExpertEdit> edits;
    edits.reserve(kExperts + kSlots);
    for (int expert = 0; expert < kExperts; ++expert) {
      edits.push_back({.kind = ExpertEditKind::kAllowFill, .layer = 0, .expert = expert});
    }
    for (int slot = 0; slot < kSlots; ++slot) {
      edits.push_back({.kind = ExpertEditKind::kOffer, .layer = 0, .slot = slot, .generation = 1});
    }
    ASSERT_TRUE(path.experts->Apply(edits).ok());
    int filled = 0, cpu_neurons = 0;
    for (int round = 0; round < 20; ++round) {
      Draw(kMaxTokens);
      ASSERT_TRUE(path.experts->BeginStep(kMaxTokens).ok());
      Run(*path.experts);
      ASSERT_TRUE(path.experts->EndStep().ok());
      int cut = 0;
      for (const ExpertUse& use : path.experts->Uses(0)) {
        filled += use.kind == ExpertUseKind::kFilled ? 1 : 0;
        cpu_neurons += use.cpu_neurons;
        cut += use.cpu_neurons > 0 && use.cpu_neurons < kNeurons ? 1 : 0;
        const bool cold = use.kind == ExpertUseKind::kCold;
        EXPECT_LE(use.cpu_neurons, cold ? kNeurons : 0);
        EXPECT_TRUE(!cold || cold_path == ColdPath::kHybrid || use.cpu_neurons == kNeurons);
      }
      EXPECT_LE(cut, cold_path == ColdPath::kHybrid ? 1 : 0);
    }
    EXPECT_EQ(filled, kSlots);
    EXPECT_GT(cpu_neurons, 0);
  }
}

TEST_F(CpuDeviceExpertsTest, AnOfferedSlotServesItsExpertUntilAnotherFillsIt) {
  const Path path = Create(ColdPath::kLink);
  const auto kind_of = [&](int expert) { return path.experts->Uses(0)[expert].kind; };
  const auto run = [&](int first) {  // one token, of experts first, first + 2, ...
    Draw(1);
    for (int k = 0; k < kTopK; ++k) ids_[k] = (first + 2 * k) % kExperts;
    const std::vector<float> sums = Run(*path.experts);
    EXPECT_LE(RelativeDifference(sums, Run(*Create(ColdPath::kLink).experts)), 1e-6);
  };
  ASSERT_TRUE(path.experts
                  ->Apply(std::vector<ExpertEdit>{
                      {.kind = ExpertEditKind::kAllowFill, .layer = 0, .expert = 0},
                      {.kind = ExpertEditKind::kOffer, .layer = 0, .slot = 0, .generation = 1}})
                  .ok());
  run(0);
  EXPECT_EQ(kind_of(0), ExpertUseKind::kFilled);
  ASSERT_TRUE(path.experts
                  ->Apply(std::vector<ExpertEdit>{
                      {.kind = ExpertEditKind::kAllowFill, .layer = 0, .expert = 2},
                      {.kind = ExpertEditKind::kOffer,
                       .layer = 0,
                       .expert = 0,
                       .slot = 0,
                       .generation = 2}})
                  .ok());
  run(0);
  EXPECT_EQ(kind_of(0), ExpertUseKind::kHit);
  EXPECT_EQ(kind_of(2), ExpertUseKind::kCold) << "the step reads the slot";
  run(2);
  EXPECT_EQ(kind_of(2), ExpertUseKind::kFilled);
  run(0);
  EXPECT_EQ(kind_of(0), ExpertUseKind::kCold);
  EXPECT_EQ(kind_of(2), ExpertUseKind::kHit);
}

TEST_F(CpuDeviceExpertsTest, TheLinkHasTheExpertsOfTheMostTokens) {
  const Path path = Create(ColdPath::kHybrid);
  int between_different = 0;  // the link's part ended
  for (int round = 0; round < 60; ++round) {
    Draw(1 + static_cast<int>(random_() % kMaxTokens));
    ASSERT_TRUE(path.experts->BeginStep(ids_.size() / kTopK).ok());
    Run(*path.experts);
    ASSERT_TRUE(path.experts->EndStep().ok());
    std::vector<int> tokens(kExperts);
    for (const int32_t id : ids_) ++tokens[id];
    const std::span<const ExpertUse> uses = path.experts->Uses(0);
    for (int a = 0; a < kExperts; ++a) {
      for (int b = 0; b < kExperts; ++b) {
        if (tokens[b] == 0 || !ComesBefore(tokens[a], a, tokens[b], b)) continue;
        EXPECT_LE(uses[a].cpu_neurons, uses[b].cpu_neurons);
        between_different +=
            tokens[a] > tokens[b] && uses[a].cpu_neurons < uses[b].cpu_neurons ? 1 : 0;
      }
    }
  }
  EXPECT_GT(between_different, 0);
}

TEST_F(CpuDeviceExpertsTest, AnAnswerThatDoesNotComeIsATypedErrorForGood) {
  const Path path = Create(ColdPath::kCpu, /*timeout_ms=*/200);
  Draw(2);
  Run(*path.experts);  // nobody looks outside of a step
  EXPECT_EQ(path.experts->EndStep().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(path.experts->BeginStep(2).code(), absl::StatusCode::kUnavailable);
  Run(*path.experts);
  EXPECT_EQ(path.experts->EndStep().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace moed::backend
