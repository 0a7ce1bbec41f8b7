#include "runtime/model/dummy_checkpoint.h"

#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/model/dummy_values.h"
#include "tests/runtime/model/checkpoint_files.h"

namespace moed::model {
namespace {

using backend::BFloat16;
using ::testing::Each;

// No weights beside it.
constexpr char kConfig[] = R"({
  "architectures": ["Qwen2MoeForCausalLM"], "hidden_size": 256, "vocab_size": 512,
  "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 4096,
  "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 100,
  "shared_expert_intermediate_size": 40, "eos_token_id": 3})";

std::unique_ptr<Checkpoint> OpenDummy(uint64_t seed) {
  const TemporaryDirectory directory;
  directory.Write("config.json", kConfig);
  auto checkpoint = OpenCheckpoint(
      {.directory = directory.path(), .load_format = LoadFormat::kDummy, .seed = seed});
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return *std::move(checkpoint);
}

std::vector<BFloat16> Dense(const Checkpoint& checkpoint, DenseRole role, int layer = 0) {
  const auto tensor = checkpoint.ReadDense(role, layer);
  EXPECT_TRUE(tensor.ok()) << tensor.status();
  const auto* values = tensor->view.As<BFloat16>();
  return {values, values + tensor->view.num_elements()};
}

std::vector<BFloat16> Expert(const Checkpoint& checkpoint, cache::ExpertKey key) {
  std::vector<BFloat16> blob(checkpoint.experts().format().blob_bytes() / sizeof(BFloat16));
  EXPECT_TRUE(checkpoint.experts().Read(key, {}, std::as_writable_bytes(std::span(blob))).ok());
  return blob;
}

struct Moments {
  double mean = 0;
  double deviation = 0;
};

Moments MomentsOf(const std::vector<BFloat16>& values) {
  double sum = 0;
  double squares = 0;
  for (const BFloat16 value : values) {
    sum += backend::ToFloat(value);
    squares += static_cast<double>(backend::ToFloat(value)) * backend::ToFloat(value);
  }
  const double mean = sum / static_cast<double>(values.size());
  return {mean, std::sqrt(squares / static_cast<double>(values.size()) - mean * mean)};
}

TEST(DummyCheckpointTest, NeedsTheConfigAlone) {
  const auto checkpoint = OpenDummy(1);
  EXPECT_EQ(checkpoint->config().hidden, 256);
  EXPECT_THAT(checkpoint->generation().eos_token_ids, ::testing::ElementsAre(3));
  EXPECT_FALSE(checkpoint->Has(DenseRole::kQueryNorm, 0));
  EXPECT_TRUE(checkpoint->Has(DenseRole::kSharedExpertGate, 1));
}

TEST(DummyCheckpointTest, WeightsDependOnSeedAndTensorAlone) {
  const auto one = OpenDummy(1);
  const auto again = OpenDummy(1);
  const auto other = OpenDummy(2);
  EXPECT_EQ(Expert(*one, {1, 3}), Expert(*again, {1, 3}));
  EXPECT_NE(Expert(*one, {1, 3}), Expert(*other, {1, 3}));
  EXPECT_NE(Expert(*one, {1, 3}), Expert(*one, {1, 4}));
  EXPECT_NE(Expert(*one, {1, 3}), Expert(*one, {0, 3}));
  EXPECT_EQ(Dense(*one, DenseRole::kQuery, 1), Dense(*again, DenseRole::kQuery, 1));
  EXPECT_NE(Dense(*one, DenseRole::kQuery, 1), Dense(*one, DenseRole::kQuery, 0));
  EXPECT_NE(Dense(*one, DenseRole::kKey), Dense(*one, DenseRole::kValue));
}

TEST(DummyCheckpointTest, ScalesKeepRoutingNearUniform) {
  const auto checkpoint = OpenDummy(7);
  EXPECT_NEAR(MomentsOf(Dense(*checkpoint, DenseRole::kEmbedding)).deviation, 1, 0.02);
  EXPECT_NEAR(MomentsOf(Dense(*checkpoint, DenseRole::kQuery)).deviation, 0.02, 0.0005);
  EXPECT_NEAR(MomentsOf(Dense(*checkpoint, DenseRole::kOutput)).deviation, 0.001, 0.00003);
  EXPECT_NEAR(MomentsOf(Dense(*checkpoint, DenseRole::kRouter)).deviation, 0.02, 0.001);
  const Moments expert = MomentsOf(Expert(*checkpoint, {0, 0}));
  EXPECT_NEAR(expert.deviation, 0.02, 0.0005);
  EXPECT_NEAR(expert.mean, 0, 0.0005);
  EXPECT_THAT(Dense(*checkpoint, DenseRole::kFinalNorm), Each(backend::ToBFloat16(1)));
}

TEST(DummyValuesTest, AnyPartOfATensorIsThePartOfTheWhole) {
  const DummyValues values(5, 1.0f);
  std::vector<BFloat16> whole(10'000);
  values.Fill(42, 0, whole);
  for (const auto& [first, count] :
       {std::pair<int, int>{0, 1}, {1023, 2}, {1000, 3000}, {9999, 1}}) {
    std::vector<BFloat16> part(count);
    values.Fill(42, first, part);
    EXPECT_EQ(part, std::vector<BFloat16>(whole.begin() + first, whole.begin() + first + count));
  }
}

TEST(DummyValuesTest, AreNormallyDistributed) {
  const DummyValues values(5, 2.0f);
  std::vector<BFloat16> sample(1 << 18);
  values.Fill(1, 0, sample);
  int within_one = 0;
  int beyond_three = 0;
  for (const BFloat16 value : sample) {
    within_one += std::abs(backend::ToFloat(value)) < 2;
    beyond_three += std::abs(backend::ToFloat(value)) > 6;
  }
  EXPECT_NEAR(within_one / static_cast<double>(sample.size()), 0.6827, 0.01);
  EXPECT_NEAR(beyond_three / static_cast<double>(sample.size()), 0.0027, 0.001);
}

}  // namespace
}  // namespace moed::model
