// A prefill in slices of layers, with steps between them, against the same chunks run alone.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/golden/golden_case.h"
#include "tests/runtime/model/test_model.h"

namespace moed::model {
namespace {

using testing::TestModel;
using testing::TestModelOptions;
using testing::TestSequence;

struct PassCase {
  std::string golden;
  int num_slots;
  int device_tokens;  // 0: host-driven
};

std::vector<int32_t> Tokens(int count, int seed) {
  std::vector<int32_t> tokens(count);
  for (int i = 0; i < count; ++i) tokens[i] = (seed + i * 37 + i * i * 11) % 250;
  return tokens;
}

class PrefillPassTest : public ::testing::TestWithParam<PassCase> {
 protected:
  PrefillPassTest() {
    if (testing::TestsUseCuda()) return;
    options_.directory = testing::LoadGoldenCase(GetParam().golden)->checkpoint_directory;
    options_.num_slots = GetParam().num_slots;
    options_.device_tokens = GetParam().device_tokens;
  }
  void SetUp() override {
    if (testing::TestsUseCuda()) GTEST_SKIP() << "bits are the CPU's";
  }
  std::unique_ptr<TestModel> Model() {
    auto model = TestModel::Create(options_);
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  TestModelOptions options_;
  const TestSequence prompt_ = {.token_ids = Tokens(70, 3)};
  const TestSequence decoding_ = {.token_ids = Tokens(24, 5), .chunk_tokens = {12, 1}};
};

TEST_P(PrefillPassTest, NeitherSideSeesTheOther) {
  const auto alone = Model()->Logits(std::vector{prompt_});
  const auto decoded = Model()->Logits(std::vector{decoding_});
  ASSERT_TRUE(alone.ok() && decoded.ok());
  for (int layers : {1, 2, 100}) {
    const auto both = Model()->LogitsBesidePass(prompt_, decoding_, layers);
    ASSERT_TRUE(both.ok()) << both.status();
    EXPECT_EQ((*both)[0], (*alone)[0]) << layers << " layers a slice";
    EXPECT_EQ((*both)[1], (*decoded)[0]) << layers << " layers a slice";
  }
}

TEST_P(PrefillPassTest, SharesAddUpAndThePassIsOneStepOfTheStatistics) {
  const auto model = Model();
  ASSERT_TRUE(model->LogitsBesidePass(prompt_, decoding_, 1).ok());
  const cache::CacheStats stats = model->experts().cache().Stats();
  int64_t hits = 0, misses = 0, tokens = 0;
  for (const cache::LayerStats& layer : stats.layers) {
    hits += layer.hits_total;
    misses += layer.misses_total;
    tokens += layer.tokens_total;
  }
  EXPECT_NEAR(model->share_total().hits, static_cast<double>(hits), 1e-6);
  EXPECT_NEAR(model->share_total().misses, static_cast<double>(misses), 1e-6);
  EXPECT_EQ(stats.steps_total, 1 + 12 + 1);
  int moe_layers = 0;
  for (const LayerConfig& layer : model->config().layers) moe_layers += layer.is_moe ? 1 : 0;
  EXPECT_EQ(tokens, int64_t{70 + 24} * moe_layers * model->config().router.top_k);
}

TEST_P(PrefillPassTest, AnAbandonedPassLeavesNothingBehind) {
  const auto model = Model();
  const auto alone = Model()->Logits(std::vector{prompt_});
  ASSERT_TRUE(alone.ok());
  ASSERT_TRUE(model->AbandonPass(prompt_, 1).ok());
  const auto again = model->Logits(std::vector{prompt_});
  ASSERT_TRUE(again.ok());
  EXPECT_EQ((*again)[0], (*alone)[0]);
}

std::vector<PassCase> Cases() {
  std::vector<PassCase> cases;
  for (const char* golden : {"qwen3_moe_dense_layers", "qwen2_moe", "olmoe"}) {
    for (int slots : {4, 7, 1 << 20}) {
      cases.push_back({golden, slots, 0});
      cases.push_back({golden, slots, 8});
    }
    cases.push_back({golden, 0, 8});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Models, PrefillPassTest, ::testing::ValuesIn(Cases()),
                         [](const auto& test) {
                           const PassCase& c = test.param;
                           return c.golden + "_" + std::to_string(c.num_slots) + "_slots_" +
                                  (c.device_tokens > 0 ? "device" : "host");
                         });

}  // namespace
}  // namespace moed::model
