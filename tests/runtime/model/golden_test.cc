// The model against transformers in float32 on tiny checkpoints of every family, at every budget,
// alone and in mixed batches (docs/DESIGN.md, numerics contract).

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "tests/golden/golden_case.h"
#include "tests/runtime/model/converted_checkpoint.h"
#include "tests/runtime/model/test_model.h"

namespace moed::testing {
namespace {

// Contract (b): relative RMS of teacher-forced logits, over a case and at any one position.
constexpr double kCaseBound = 7e-3;
constexpr double kRowBound = 1.5e-2;
// On a GPU, whose sums come in any order, a router that is less sure than kRouterGap may flip; the
// sequence's later positions see its keys and values.
constexpr double kLaterRowBound = 0.1;
// Routers less sure than this may choose otherwise; such positions are counted and shown apart.
constexpr float kRouterGap = 1e-2f;

double SquareSum(std::span<const float> values) {
  double sum = 0;
  for (float value : values) sum += double{value} * value;
  return sum;
}

double SquaredDistance(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
  return sum;
}

size_t Greedy(std::span<const float> logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

// What a case's logits are against the reference's, positions whose routing could flip apart.
struct Comparison {
  double difference = 0;
  double reference = 0;
  double worst_row = 0;
  double worst_unsure_row = 0;
  double worst_later_row = 0;  // behind an unsure one, whose keys and values it sees
  int rows = 0;
  int unsure_rows = 0;

  double relative_rms() const { return std::sqrt(difference / reference); }
};

// `logits` [tokens, V] of one sequence; greedy choices are checked on the way.
void Compare(const GoldenPrompt& prompt, std::span<const float> logits, Comparison* comparison) {
  const auto vocabulary = static_cast<size_t>(prompt.vocabulary);
  ASSERT_EQ(logits.size(), prompt.token_ids.size() * vocabulary);
  bool unsure_before = false;
  for (size_t p = prompt.first_logits; p < prompt.token_ids.size(); ++p) {
    const std::span<const float> row = logits.subspan(p * vocabulary, vocabulary);
    const std::span<const float> reference = prompt.LogitsAt(static_cast<int>(p));
    const double difference = SquaredDistance(row, reference);
    const double size = SquareSum(reference);
    const double relative = std::sqrt(difference / size);
    if (prompt.RouterGap(static_cast<int>(p)) < kRouterGap) {
      unsure_before = true;
      ++comparison->unsure_rows;
      comparison->worst_unsure_row = std::max(comparison->worst_unsure_row, relative);
      continue;
    }
    ++comparison->rows;
    if (TestsUseCuda() && unsure_before) {
      comparison->worst_later_row = std::max(comparison->worst_later_row, relative);
      continue;
    }
    comparison->difference += difference;
    comparison->reference += size;
    comparison->worst_row = std::max(comparison->worst_row, relative);
    const double rms = std::sqrt(size / static_cast<double>(vocabulary));
    if (prompt.TopTwoGap(static_cast<int>(p)) > 2 * kRowBound * rms) {
      EXPECT_EQ(Greedy(row), Greedy(reference)) << "position " << p;
    }
  }
}

class GoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (TestsUseCuda() && !backend::CudaAvailable()) {
      GTEST_SKIP() << "no GPU on this machine, or no CUDA in this build";
    }
    auto golden = LoadGoldenCase(GetParam());
    ASSERT_TRUE(golden.ok()) << golden.status();
    golden_ = *std::move(golden);
  }

  std::unique_ptr<TestModel> Model(int num_slots, const std::string& policy = "recency-frequency",
                                   int device_tokens = 0,
                                   backend::ColdPath cold_path = backend::ColdPath::kLink) {
    auto model = TestModel::Create({.directory = golden_.checkpoint_directory,
                                    .num_slots = num_slots,
                                    .policy = policy,
                                    .device_tokens = device_tokens,
                                    .cold_path = cold_path});
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  // 100 %, 50 %, min(E, 3 k) a layer, and k slots in all.
  std::vector<int> Budgets() {
    const std::unique_ptr<TestModel> model = Model(1 << 30);
    const backend::RouterSpec& router = model->config().router;
    int layers = 0;
    for (const model::LayerConfig& layer : model->config().layers) layers += layer.is_moe ? 1 : 0;
    return {layers * router.num_experts, std::max(layers * router.num_experts / 2, router.top_k),
            layers * std::min(router.num_experts, 3 * router.top_k), router.top_k};
  }

  // Every prompt by itself, in one chunk.
  std::vector<std::vector<float>> Alone(TestModel& model) {
    std::vector<std::vector<float>> logits;
    for (const GoldenPrompt& prompt : golden_.prompts) {
      const TestSequence sequence = {.token_ids = prompt.token_ids};
      auto one = model.Logits(std::span(&sequence, 1));
      EXPECT_TRUE(one.ok()) << one.status();
      logits.push_back(std::move((*one)[0]));
    }
    return logits;
  }

  // All prompts at once, in chunks of different lengths that end in decodes.
  std::vector<std::vector<float>> Mixed(TestModel& model) {
    std::vector<TestSequence> sequences;
    for (size_t i = 0; i < golden_.prompts.size(); ++i) {
      const int first = 3 + 4 * static_cast<int>(i);
      sequences.push_back({golden_.prompts[i].token_ids, {first, 1, 17, 5, 1}});
    }
    auto logits = model.Logits(sequences);
    EXPECT_TRUE(logits.ok()) << logits.status();
    return *std::move(logits);
  }

  void ExpectWithinBound(const std::vector<std::vector<float>>& logits, const char* how) {
    Comparison comparison;
    for (size_t i = 0; i < logits.size(); ++i) Compare(golden_.prompts[i], logits[i], &comparison);
    EXPECT_LE(comparison.relative_rms(), kCaseBound);
    EXPECT_LE(comparison.worst_row, kRowBound);
    EXPECT_LE(comparison.worst_later_row, kLaterRowBound);
    EXPECT_GE(comparison.rows, 3 * comparison.unsure_rows);
    std::printf("  %-28s %-6s relative RMS %.4f, worst of %d rows %.4f, of %d unsure %.4f\n",
                GetParam().c_str(), how, comparison.relative_rms(), comparison.rows,
                comparison.worst_row, comparison.unsure_rows, comparison.worst_unsure_row);
  }

  void ExpectSameBitsAtEveryBudget() {
    const std::vector<int> budgets = Budgets();
    const std::unique_ptr<TestModel> resident = Model(budgets[0]);
    const std::vector<std::vector<float>> alone = Alone(*resident);
    const std::vector<std::vector<float>> mixed = Mixed(*resident);
    for (size_t i = 1; i < budgets.size(); ++i) {
      const std::unique_ptr<TestModel> model = Model(budgets[i]);
      ExpectSame(Alone(*model), alone, budgets[i]);
      ExpectSame(Mixed(*model), mixed, budgets[i]);
      EXPECT_LE(model->experts().cache().num_slots(), budgets[i]);
    }
  }

  // Contract (a) on the CPU, (b) on a GPU.
  void ExpectSame(const std::vector<std::vector<float>>& logits,
                  const std::vector<std::vector<float>>& expected, int num_slots) {
    if (TestsUseCuda()) {
      ExpectWithinBound(logits, "budget");
    } else {
      EXPECT_EQ(logits, expected) << num_slots << " slots";
    }
  }

  GoldenCase golden_;
};

TEST_P(GoldenTest, LogitsAndGreedyTokensAgreeWithTheReference) {
  const std::unique_ptr<TestModel> model = Model(1 << 30);
  ExpectWithinBound(Alone(*model), "alone");
  ExpectWithinBound(Mixed(*model), "mixed");
}

TEST_P(GoldenTest, EveryBudgetGivesTheSameBits) { ExpectSameBitsAtEveryBudget(); }

TEST_P(GoldenTest, EveryPolicyGivesTheSameBits) {
  const int num_slots = Budgets()[1];
  const std::vector<std::vector<float>> expected = Mixed(*Model(num_slots));
  for (const char* policy : {"lru", "lfu", "static"}) {
    ExpectSame(Mixed(*Model(num_slots, policy)), expected, num_slots);
  }
}

// Long prompts are host-driven, short ones and decodes device-driven, over the same slots.
TEST_P(GoldenTest, DeviceDrivenStepsGiveTheSameBitsAtEveryBudget) {
  const std::vector<std::vector<float>> expected = Mixed(*Model(1 << 30));
  std::vector<int> budgets = Budgets();
  budgets.push_back(0);
  for (const int num_slots : budgets) {
    const std::unique_ptr<TestModel> model = Model(num_slots, "recency-frequency", 16);
    ExpectSame(Mixed(*model), expected, num_slots);
    // Once more, over what the first round left in the slots.
    ExpectSame(Mixed(*model), expected, num_slots);
    EXPECT_GE(model->share_total().hits, num_slots > 0 ? 1e-6 : 0) << num_slots << " slots";
  }
}

// Contract (b): where cold experts are computed, and where one is cut, is up to measured times.
TEST_P(GoldenTest, EveryColdPathStaysWithinTheBoundAtEveryBudget) {
  std::vector<int> budgets = Budgets();
  budgets.push_back(0);
  for (const auto cold_path : {backend::ColdPath::kCpu, backend::ColdPath::kHybrid}) {
    const bool hybrid = cold_path == backend::ColdPath::kHybrid;
    for (const int num_slots : budgets) {
      const std::unique_ptr<TestModel> model = Model(num_slots, "recency-frequency", 16, cold_path);
      ExpectWithinBound(Mixed(*model), hybrid ? "hybrid" : "cpu");
      // Once more, over what the first round left in the slots.
      ExpectWithinBound(Mixed(*model), hybrid ? "hybrid" : "cpu");
      if (num_slots > 0 || model->experts().device() == nullptr) continue;
      int64_t cpu_bytes = 0;
      for (const cache::LayerStats& layer : model->experts().cache().Stats().layers) {
        cpu_bytes += layer.bytes_total[static_cast<int>(cache::BytePath::kCpu)];
      }
      EXPECT_GT(cpu_bytes, 0);
    }
  }
}

// The same checkpoints with experts in bf12, written by ConvertCheckpoint and read from its files.
class Bf12GoldenTest : public GoldenTest {
 protected:
  void SetUp() override {
    GoldenTest::SetUp();
    if (IsSkipped()) return;
    if (TestsUseCuda() && !(*backend::CreateCudaBackend({}))
                               ->SupportsExpertFormat(backend::ExpertFormatKind::kBF12)) {
      GTEST_SKIP() << "the device has no kernels for bf12";
    }
    plain_directory_ = golden_.checkpoint_directory;
    converted_.emplace(plain_directory_);
    golden_.checkpoint_directory = converted_->directory();
  }

  // Relative RMS between two runs, over positions whose routing is sure.
  double Distance(const std::vector<std::vector<float>>& a,
                  const std::vector<std::vector<float>>& b) {
    double difference = 0;
    double size = 0;
    for (size_t i = 0; i < golden_.prompts.size(); ++i) {
      const GoldenPrompt& prompt = golden_.prompts[i];
      const auto vocabulary = static_cast<size_t>(prompt.vocabulary);
      for (size_t p = 0; p < prompt.token_ids.size(); ++p) {
        if (prompt.RouterGap(static_cast<int>(p)) < kRouterGap) continue;
        const auto row = std::span(a[i]).subspan(p * vocabulary, vocabulary);
        difference += SquaredDistance(row, std::span(b[i]).subspan(p * vocabulary, vocabulary));
        size += SquareSum(row);
      }
    }
    return std::sqrt(difference / size);
  }

  std::string plain_directory_;
  std::optional<model::ConvertedCheckpoint> converted_;
};

TEST_P(Bf12GoldenTest, LogitsAreTheReferencesAndThoseOfBf16) {
  const std::unique_ptr<TestModel> model = Model(1 << 30);
  EXPECT_EQ(model->experts().format().kind(), backend::ExpertFormatKind::kBF12);
  const std::vector<std::vector<float>> alone = Alone(*model);
  ExpectWithinBound(alone, "bf12");
  ExpectWithinBound(Mixed(*model), "mixed");
  golden_.checkpoint_directory = plain_directory_;
  const double distance = Distance(Alone(*Model(1 << 30)), alone);
  EXPECT_LE(distance, kCaseBound);
  std::printf("  %-28s bf12 to bf16: relative RMS %.2g\n", GetParam().c_str(), distance);
}

TEST_P(Bf12GoldenTest, EveryBudgetGivesTheSameBits) { ExpectSameBitsAtEveryBudget(); }

TEST_P(Bf12GoldenTest, DeviceDrivenStepsGiveTheSameBitsAtEveryBudget) {
  const std::vector<std::vector<float>> expected = Mixed(*Model(1 << 30));
  std::vector<int> budgets = Budgets();
  budgets.push_back(0);
  for (const int num_slots : budgets) {
    const std::unique_ptr<TestModel> model = Model(num_slots, "recency-frequency", 16);
    ExpectSame(Mixed(*model), expected, num_slots);
  }
}

// As a host store of every expert is filled from bf16 files.
TEST_P(Bf12GoldenTest, EncodingWhileLoadingGivesTheSameBits) {
  const int num_slots = Budgets()[1];
  const std::vector<std::vector<float>> expected = Mixed(*Model(num_slots));
  auto model = TestModel::Create({.directory = plain_directory_,
                                  .num_slots = num_slots,
                                  .device_tokens = 16,
                                  .encode_experts = true});
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectSame(Mixed(**model), expected, num_slots);
}

INSTANTIATE_TEST_SUITE_P(Cases, Bf12GoldenTest, ::testing::ValuesIn(GoldenCaseNames()),
                         [](const auto& test) { return test.param; });

INSTANTIATE_TEST_SUITE_P(Cases, GoldenTest, ::testing::ValuesIn(GoldenCaseNames()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace moed::testing
