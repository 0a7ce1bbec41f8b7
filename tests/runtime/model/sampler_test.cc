#include "runtime/model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace moed::model {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

int32_t SampleToken(const std::vector<float>& logits, const SamplerState& state) {
  Sampler sampler(static_cast<int>(logits.size()));
  ChunkResult result;
  sampler.Sample(logits, state, &result);
  return result.token;
}

// The distribution that the options leave, by the definitions alone: doubles, a full sort.
std::vector<double> ReferenceDistribution(std::vector<double> logits,
                                          const SamplingParams& params) {
  const size_t size = logits.size();
  std::vector<size_t> order(size);
  for (size_t i = 0; i < size; ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  });
  const size_t top_k = params.top_k > 0 ? std::min<size_t>(params.top_k, size) : size;
  std::vector<double> weights(size, 0);
  double total = 0;
  for (size_t rank = 0; rank < top_k; ++rank) {
    const size_t id = order[rank];
    weights[id] = std::exp((logits[id] - logits[order[0]]) / params.temperature);
    total += weights[id];
  }
  double before = 0;
  for (size_t id : order) {
    const bool out_of_nucleus = params.top_p < 1 && before >= params.top_p * total;
    before += weights[id];
    if (out_of_nucleus || weights[id] < params.min_p) weights[id] = 0;
  }
  double kept = 0;
  for (double weight : weights) kept += weight;
  for (double& weight : weights) weight /= kept;
  return weights;
}

TEST(SamplerTest, GreedyTakesTheLowestIdOfTheMaximum) {
  EXPECT_EQ(SampleToken({1, 5, 5, 2}, SamplerState({.temperature = 0}, {})), 1);
  EXPECT_EQ(SampleToken({1, 5, 5, 2}, SamplerState({.temperature = 1e-30f}, {})), 1);
}

TEST(SamplerTest, TopKOfOneTopPOfNothingAndMinPOfOneAreGreedy) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::vector<float> logits = {0.1f, 0.3f, 0.2f};
    EXPECT_EQ(SampleToken(logits, SamplerState({.top_k = 1, .seed = seed}, {})), 1);
    EXPECT_EQ(SampleToken(logits, SamplerState({.top_p = 1e-6f, .seed = seed}, {})), 1);
    EXPECT_EQ(SampleToken(logits, SamplerState({.min_p = 1, .seed = seed}, {})), 1);
  }
}

TEST(SamplerTest, DrawsFromTheDistributionThatTheOptionsLeave) {
  const SamplingParams cases[] = {
      {.temperature = 1},
      {.temperature = 0.5f},
      {.temperature = 3},
      {.top_k = 5},
      {.top_p = 0.7f},
      {.min_p = 0.2f},
      {.temperature = 2, .top_k = 8, .top_p = 0.6f},
      {.temperature = 2, .top_p = 0.9f, .min_p = 0.05f},
      {.temperature = 1.5f, .top_k = 12, .top_p = 0.95f, .min_p = 0.1f},
      {.temperature = 100},
  };
  constexpr int kDraws = 4000;
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 2);
  for (const SamplingParams& params : cases) {
    std::vector<float> logits(40);
    for (float& logit : logits) logit = normal(random);
    const std::vector<double> expected =
        ReferenceDistribution({logits.begin(), logits.end()}, params);
    std::vector<int> counts(logits.size());
    SamplerState state(params, {});
    for (int i = 0; i < kDraws; ++i) {
      const int32_t token = SampleToken(logits, state);
      ++counts[token];
      state.Accept(token);
    }
    for (size_t id = 0; id < logits.size(); ++id) {
      const double deviation = std::sqrt(kDraws * expected[id] * (1 - expected[id]));
      EXPECT_NEAR(counts[id], kDraws * expected[id], 5 * deviation) << id;
    }
  }
}

TEST(SamplerTest, KeepsTheRightTokensOfAWideVocabulary) {
  constexpr int kVocab = 151936;
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> logits(kVocab);
  for (float& logit : logits) logit = normal(random);
  Sampler sampler(kVocab);
  for (const SamplingParams& params :
       {SamplingParams{.top_p = 0.3f}, SamplingParams{.top_k = 50}, SamplingParams{.min_p = 0.1f},
        SamplingParams{.temperature = 0.6f, .top_k = 2000, .top_p = 0.5f}}) {
    const std::vector<double> expected =
        ReferenceDistribution({logits.begin(), logits.end()}, params);
    SamplerState state(params, {});
    double probability = 0;
    for (int i = 0; i < 50; ++i) {
      ChunkResult result;
      sampler.Sample(logits, state, &result);
      state.Accept(result.token);
      EXPECT_GT(expected[result.token], 0) << "token " << result.token;
      probability += expected[result.token];
    }
    EXPECT_LT(probability, 50);
  }
}

// The greedy choice among `logits` after a prompt and an output.
int32_t GreedyAfter(SamplingParams params, const std::vector<int32_t>& prompt,
                    const std::vector<int32_t>& output, const std::vector<float>& logits) {
  params.temperature = 0;
  SamplerState state(std::move(params), prompt);
  for (int32_t token : output) state.Accept(token);
  return SampleToken(logits, state);
}

TEST(SamplerTest, RepetitionPenaltyDividesPositiveAndMultipliesNegativeLogits) {
  EXPECT_EQ(GreedyAfter({.repetition_penalty = 2}, {0}, {}, {4, 3, 0}), 1);        // 4 / 2 < 3
  EXPECT_EQ(GreedyAfter({.repetition_penalty = 2}, {0}, {}, {-1, -1.5f, -9}), 1);  // -2 < -1.5
  EXPECT_EQ(GreedyAfter({.repetition_penalty = 2}, {}, {0}, {4, 3, 0}), 1);
  EXPECT_EQ(GreedyAfter({.repetition_penalty = 0.5f}, {1}, {}, {4, 3, 0}), 1);  // 3 / 0.5 > 4
}

TEST(SamplerTest, PresencePenaltyCountsOutputTokensOnce) {
  EXPECT_EQ(GreedyAfter({.presence_penalty = 1.5f}, {0}, {}, {4, 3, 0}), 0);
  EXPECT_EQ(GreedyAfter({.presence_penalty = 1.5f}, {}, {0}, {4, 3, 0}), 1);
  EXPECT_EQ(GreedyAfter({.presence_penalty = 0.9f}, {}, {0, 0, 0}, {4, 3, 0}), 0);
}

TEST(SamplerTest, FrequencyPenaltyCountsOutputTokensEachTime) {
  EXPECT_EQ(GreedyAfter({.frequency_penalty = 0.4f}, {}, {0, 0}, {4, 3, 0}), 0);
  EXPECT_EQ(GreedyAfter({.frequency_penalty = 0.4f}, {}, {0, 0, 0}, {4, 3, 0}), 1);
}

TEST(SamplerTest, LogitBiasIsAddedAfterThePenalties) {
  EXPECT_EQ(GreedyAfter({.logit_bias = {{2, 4.5f}}}, {}, {}, {4, 3, 0}), 2);
  EXPECT_EQ(GreedyAfter({.logit_bias = {{0, -100}}}, {}, {}, {4, 3, 0}), 1);
  // 4 / 2 + 1.5 > 3, but (4 + 1.5) / 2 < 3.
  EXPECT_EQ(GreedyAfter({.repetition_penalty = 2, .logit_bias = {{0, 1.5f}}}, {0}, {}, {4, 3, 0}),
            0);
}

TEST(SamplerTest, NeverChoosesForbiddenTokens) {
  for (float temperature : {0.0f, 1.0f, 100.0f}) {
    SamplerState state({.temperature = temperature, .logit_bias = {{0, 100}}}, {});
    state.Forbid({0, 2});
    for (int i = 0; i < 50; ++i) {
      EXPECT_EQ(SampleToken({9, 1, 8}, state), 1);
      state.Accept(1);
    }
  }
}

TEST(SamplerTest, LogprobsAreOfTheUnscaledUnpenalizedSoftmax) {
  const std::vector<float> logits = {1, 2, 3, 0};
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit);
  SamplerState state({.temperature = 0, .logit_bias = {{0, 50}}, .logprobs = 2}, {});
  Sampler sampler(4);
  ChunkResult result;
  sampler.Sample(logits, state, &result);
  EXPECT_EQ(result.token, 0);
  EXPECT_NEAR(result.logprob, 1 - std::log(sum), 1e-5);
  ASSERT_EQ(result.top_logprobs.size(), 2u);
  EXPECT_EQ(result.top_logprobs[0].id, 2);
  EXPECT_NEAR(result.top_logprobs[0].logprob, 3 - std::log(sum), 1e-5);
  EXPECT_EQ(result.top_logprobs[1].id, 1);

  const std::vector<TokenLogprob> prompt = sampler.Logprobs(logits, 3, 1);
  ASSERT_EQ(prompt.size(), 2u);
  EXPECT_EQ(prompt[0].id, 3);
  EXPECT_NEAR(prompt[0].logprob, -std::log(sum), 1e-5);
  EXPECT_EQ(prompt[1].id, 2);
}

TEST(SamplerTest, DrawsDependOnSeedAndPositionAlone) {
  std::vector<float> logits(200, 0.0f);
  const auto tokens = [&](uint64_t seed) {
    SamplerState state({.seed = seed}, {});
    std::vector<int32_t> drawn;
    for (int i = 0; i < 10; ++i) {
      drawn.push_back(SampleToken(logits, state));
      state.Accept(drawn.back());
    }
    return drawn;
  };
  EXPECT_EQ(tokens(5), tokens(5));
  EXPECT_NE(tokens(5), tokens(6));
}

TEST(SamplerTest, ReportsRowsWithoutAChoiceAsInvalid) {
  Sampler sampler(3);
  SamplerState greedy({.temperature = 0, .logprobs = 1}, {});
  SamplerState forbidding({.temperature = 1}, {});
  forbidding.Forbid({0, 1, 2});
  SamplerState hiding({.logprobs = 1}, {});
  hiding.Forbid({1});
  const struct {
    std::vector<float> logits;
    const SamplerState& state;
    bool invalid;
  } cases[] = {{{0, kNan, 0}, greedy, true},        {{0, kInfinity, 0}, greedy, true},
               {{0, -kInfinity, 0}, greedy, false}, {{0, 1, 0}, forbidding, true},
               {{0, kNan, 0}, hiding, true},        {{0, 1, 0}, hiding, false}};
  for (const auto& test : cases) {
    ChunkResult result;
    sampler.Sample(test.logits, test.state, &result);
    EXPECT_EQ(result.invalid, test.invalid) << (&test - cases);
    EXPECT_EQ(result.token < 0, test.invalid) << (&test - cases);
  }
  EXPECT_TRUE(sampler.Logprobs(std::vector<float>{0, kNan, 0}, 1, 1).empty());
}

}  // namespace
}  // namespace moed::model
