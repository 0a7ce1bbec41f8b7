#include "runtime/model/row_sampling.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/model/counter_random.h"

namespace moed::model {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// (token, value) of some adjustments, those of penalties in order of tokens.
std::vector<std::pair<int, float>> Values(const std::vector<backend::LogitAdjustment>& adjustments,
                                          int first, int count) {
  std::vector<std::pair<int, float>> values;
  for (int i = first; i < first + count; ++i) {
    values.emplace_back(adjustments[i].token, adjustments[i].value);
  }
  return values;
}

TEST(RowSamplingTest, PassesPlainOptionsOn) {
  std::vector<backend::LogitAdjustment> adjustments;
  const SamplerState state(
      {.temperature = 0.5f, .top_k = 7, .top_p = 0.75f, .min_p = 0.125f, .seed = 99, .logprobs = 4},
      {});
  const backend::RowSampling row = MakeRowSampling(state, 3, &adjustments);
  EXPECT_EQ(row.row, 3);
  EXPECT_EQ(row.token, -1);
  EXPECT_EQ(row.logprobs, 4);
  EXPECT_EQ(row.inverse_temperature, 2.0f);
  EXPECT_EQ(row.top_k, 7);
  EXPECT_EQ(row.top_p, 0.75f);
  EXPECT_EQ(row.min_p, 0.125f);
  EXPECT_EQ(row.draw, UniformDraw(99, 0));
  EXPECT_EQ(row.num_penalties + row.num_biases + row.num_forbidden, 0);
  EXPECT_THAT(adjustments, IsEmpty());
}

TEST(RowSamplingTest, MovesToTheNextDrawWithEveryToken) {
  std::vector<backend::LogitAdjustment> adjustments;
  SamplerState state({.seed = 5}, {});
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(MakeRowSampling(state, 0, &adjustments).draw, UniformDraw(5, i));
    state.Accept(1);
  }
}

TEST(RowSamplingTest, TemperaturesNearZeroAreGreedyAndTopKOfMinusOneIsOff) {
  std::vector<backend::LogitAdjustment> adjustments;
  EXPECT_EQ(
      MakeRowSampling(SamplerState({.temperature = 0}, {}), 0, &adjustments).inverse_temperature,
      0.0f);
  EXPECT_EQ(MakeRowSampling(SamplerState({.temperature = 9e-6f}, {}), 0, &adjustments)
                .inverse_temperature,
            0.0f);
  EXPECT_GT(MakeRowSampling(SamplerState({.temperature = 1e-4f}, {}), 0, &adjustments)
                .inverse_temperature,
            9000.0f);
  EXPECT_EQ(MakeRowSampling(SamplerState({.top_k = -1}, {}), 0, &adjustments).top_k, 0);
}

TEST(RowSamplingTest, ListsPenaltiesThenBiasesInOrderOfTokensThenForbiddenTokens) {
  const std::vector<int32_t> prompt = {8, 2, 8};
  SamplerState state({.repetition_penalty = 1.5f,
                      .presence_penalty = 0.5f,
                      .frequency_penalty = 0.25f,
                      .logit_bias = {{9, 1.0f}, {4, -2.0f}, {9, 3.0f}}},
                     prompt);
  for (int32_t token : {2, 6, 6}) state.Accept(token);
  state.Forbid({1, 0});
  // Behind what another row has.
  std::vector<backend::LogitAdjustment> adjustments = {{77, 7.0f}};
  const backend::RowSampling row = MakeRowSampling(state, 0, &adjustments);
  EXPECT_EQ(row.repetition_penalty, 1.5f);
  EXPECT_EQ(row.first_adjustment, 1);
  EXPECT_EQ(row.num_penalties, 3);
  EXPECT_EQ(row.num_biases, 3);
  EXPECT_EQ(row.num_forbidden, 2);
  ASSERT_EQ(adjustments.size(), 9u);
  EXPECT_EQ(CountAdjustments(state), 8);
  std::vector<std::pair<int, float>> penalties = Values(adjustments, 1, 3);
  std::sort(penalties.begin(), penalties.end());
  EXPECT_THAT(penalties, ElementsAre(std::pair(2, 0.75f), std::pair(6, 1.0f), std::pair(8, 0.0f)));
  EXPECT_THAT(Values(adjustments, 4, 3),
              ElementsAre(std::pair(4, -2.0f), std::pair(9, 1.0f), std::pair(9, 3.0f)));
  EXPECT_THAT(Values(adjustments, 7, 2), ElementsAre(std::pair(1, 0.0f), std::pair(0, 0.0f)));
}

}  // namespace
}  // namespace moed::model
