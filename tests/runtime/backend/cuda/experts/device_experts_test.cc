// Device-driven experts on a GPU against the CPU's, in every format and on every cold path: the
// same edits and routing give the same uses and sums, and a slot that was filled on the way holds
// its expert bit for bit.
#include "runtime/backend/device_experts.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/cold_division.h"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "tests/runtime/backend/cuda/expert_layers.h"

namespace moed::backend {
namespace {

constexpr int kExperts = ExpertLayers::kExperts;
constexpr int kTopK = ExpertLayers::kTopK;
constexpr int kSlots = ExpertLayers::kSlots;

class CudaDeviceExpertsTest
    : public ::testing::TestWithParam<std::tuple<ExpertShape, ExpertFormatKind, ColdPath>> {
 protected:
  void SetUp() override {
    if (!CudaAvailable()) GTEST_SKIP() << "no GPU on this machine, or no CUDA in this build";
    cpu_ = CreateCpuBackend({.num_threads = 2}).value();
    cuda_ = CreateCudaBackend({}).value();
    const auto& [shape, kind, cold_path] = GetParam();
    const ExpertFormat format = FormatOf(kind, shape);
    on_cpu_ = std::make_unique<ExpertLayers>(*cpu_, format, ColdPath::kLink);
    on_cuda_ = std::make_unique<ExpertLayers>(*cuda_, format, cold_path);
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
    CheckTheLinkHasManyTokens(layer, ids);
  }

  // The same of tokens whose experts the router chooses.
  void RoutedStep(int layer, const RouterSpec& spec, int tokens) {
    const auto seed = static_cast<uint32_t>(random_());
    const ExpertLayers::Routed want = on_cpu_->RunRoutedStep(layer, spec, tokens, seed);
    const ExpertLayers::Routed got = on_cuda_->RunRoutedStep(layer, spec, tokens, seed);
    EXPECT_EQ(got.ids, want.ids);
    EXPECT_LE(Distance(got.weights, want.weights), 1e-4);
    EXPECT_LE(Distance(got.sums, want.sums), 1e-2);
    CheckUses(layer);
    if (tokens == 1) {
      CheckTheCpuHasHighRanks(layer, got.ids);
    } else {
      CheckTheLinkHasManyTokens(layer, got.ids);
    }
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

  // Of a cold expert's neurons the CPU has no more than of one behind it (cold_division.h).
  void CheckTheLinkHasManyTokens(int layer, const std::vector<int32_t>& ids) {
    std::vector<int> tokens(kExperts);
    for (const int32_t id : ids) ++tokens[id];
    const std::span<const ExpertUse> uses = on_cuda_->experts().Uses(layer);
    for (int a = 0; a < kExperts; ++a) {
      for (int b = 0; b < kExperts; ++b) {
        if (uses[a].kind != ExpertUseKind::kCold || uses[b].kind != ExpertUseKind::kCold) continue;
        if (!ComesBefore(tokens[a], a, tokens[b], b)) continue;
        EXPECT_LE(uses[a].cpu_neurons, uses[b].cpu_neurons)
            << tokens[a] << " and " << tokens[b] << " tokens";
      }
    }
  }
  // `ids`: of one token, by rank.
  void CheckTheCpuHasHighRanks(int layer, const std::vector<int32_t>& ids) {
    const std::span<const ExpertUse> uses = on_cuda_->experts().Uses(layer);
    int most = std::get<0>(GetParam()).second;
    for (const int32_t id : ids) {
      if (uses[id].kind != ExpertUseKind::kCold) continue;
      EXPECT_LE(uses[id].cpu_neurons, most);
      most = uses[id].cpu_neurons;
    }
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

  // Routed steps on the GPU alone, whose slots are offered anew as they are filled, with what they
  // hold: it must be read there until another fills the slot, and none be filled that is read.
  // Until so many were; beside the CPU fills may wait for long.
  void ExchangeExperts(int layer, int tokens, int exchanges) {
    constexpr int kMostSteps = 3000;
    const RouterSpec spec = {.num_experts = kExperts, .top_k = kTopK};
    for (int step = 0; step < kMostSteps && exchanges > 0; ++step) {
      const auto seed = static_cast<uint32_t>(random_());
      const ExpertLayers::Routed want = on_cpu_->RunRoutedStep(layer, spec, tokens, seed);
      const ExpertLayers::Routed got = on_cuda_->RunRoutedStep(layer, spec, tokens, seed);
      EXPECT_LE(Distance(got.sums, want.sums), 1e-2);
      const std::span<const ExpertUse> uses = on_cuda_->experts().Uses(layer);
      std::vector<ExpertEdit> edits;
      for (int expert = 0; expert < kExperts; ++expert) {
        const ExpertUse& use = uses[expert];
        if (use.kind == ExpertUseKind::kUnused) continue;
        const auto held = std::find(holders_.begin(), holders_.end(), expert);
        const bool hit = use.kind == ExpertUseKind::kHit;
        EXPECT_EQ(hit, held != holders_.end()) << expert;
        EXPECT_TRUE(!hit || use.slot == held - holders_.begin()) << expert;
        EXPECT_TRUE(use.slot < 0 || on_cuda_->Holds(use.slot, layer, expert)) << expert;
        if (use.kind != ExpertUseKind::kFilled) continue;
        edits.push_back({.kind = ExpertEditKind::kOffer,
                         .layer = layer,
                         .expert = expert,
                         .slot = use.slot,
                         .generation = use.generation + 1});
      }
      for (const ExpertEdit& offer : std::vector<ExpertEdit>(edits)) {
        const int former = std::exchange(holders_[offer.slot], offer.expert);
        if (former < 0) continue;
        EXPECT_EQ(uses[former].kind, ExpertUseKind::kUnused) << former;
        edits.push_back({.kind = ExpertEditKind::kAllowFill, .layer = layer, .expert = former});
        --exchanges;
      }
      EXPECT_TRUE(on_cuda_->experts().Apply(edits).ok());
    }
    EXPECT_LE(exchanges, 0);
  }

  std::mt19937 random_{11};
  std::unique_ptr<Backend> cpu_;
  std::unique_ptr<Backend> cuda_;
  std::unique_ptr<ExpertLayers> on_cpu_;
  std::unique_ptr<ExpertLayers> on_cuda_;
  int filled_ = 0;                                           // on the GPU
  std::vector<int> holders_ = std::vector<int>(kSlots, -1);  // of its slots
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

// The hits behind the fill show what came over the link for several tasks at once.
TEST_P(CudaDeviceExpertsTest, FillsWithExpertsOfManyTokens) {
  OfferEverySlot(0);
  for (const int tokens : {33, 12}) StepAmong(1, 0, tokens);
  for (const int tokens : {1, 24}) Step(0, tokens);
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

TEST_P(CudaDeviceExpertsTest, AnOfferedSlotServesItsExpertUntilAnotherFillsIt) {
  OfferEverySlot(1);
  for (const int tokens : {1, 2, 1}) ExchangeExperts(1, tokens, /*exchanges=*/8);
}

// Steps of one token, of several, of more than a tile has, in turn: the share of the link moves.
TEST_P(CudaDeviceExpertsTest, GivesTheSameSumsWhileTheShareMoves) {
  for (int round = 0; round < 20; ++round) {
    for (const int tokens : {1, 5, 24}) Step(round % ExpertLayers::kLayers, tokens);
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
    ::testing::Combine(::testing::Values(ExpertShape(40, 16), ExpertShape(128, 40),
                                         ExpertShape(256, 64), ExpertShape(2048, 40),
                                         ExpertShape(2880, 48), ExpertShape(4096, 40),
                                         ExpertShape(7168, 16)),
                       ::testing::Values(ExpertFormatKind::kBF16, ExpertFormatKind::kBF12),
                       ::testing::Values(ColdPath::kLink, ColdPath::kCpu, ColdPath::kHybrid)),
    NameOf);

}  // namespace
}  // namespace moed::backend
