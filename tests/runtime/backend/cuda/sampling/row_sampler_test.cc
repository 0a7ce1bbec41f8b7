// Tokens of rows sampled on a GPU against those of the host's Sampler, for the same logits and
// draws.
#include "runtime/backend/row_sampler.h"

#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/model/row_sampling.h"
#include "tests/runtime/backend/cuda/sampling/sampled_rows_test.h"

namespace moed::backend {
namespace {

using model::SamplerState;
using model::SamplingParams;

class RowSamplerTest : public SampledRowsTest {};

TEST_F(RowSamplerTest, GreedyTakesTheLowestIdOfTheMaximum) {
  for (const int vocab_size : kVocabularies) {
    if (!Create(vocab_size)) return;
    std::vector<SampledCase> cases;
    for (uint32_t seed = 0; seed < 8; ++seed) {
      cases.push_back({RandomRow(vocab_size, seed), SamplerState({.temperature = 0}, {})});
      cases.push_back({RowWithTies(vocab_size, seed), SamplerState({.temperature = 0}, {})});
    }
    cases.push_back({std::vector<float>(vocab_size, -7.0f), SamplerState({.temperature = 0}, {})});
    Compare(cases);
  }
  EXPECT_EQ(disagreements_, 0);
}

// Every value of every option with values of the others.
std::vector<SamplingParams> ParamsOfEveryKind() {
  std::vector<SamplingParams> all;
  uint64_t seed = 0;
  for (const float temperature : {0.3f, 1.0f, 2.0f, 100.0f}) {
    for (const int top_k : {0, 1, 5, 50, 1024, 1025, 30000}) {
      for (const float top_p : {1.0f, 0.95f, 0.5f, 1e-6f}) {
        for (const float min_p : {0.0f, 0.05f, 1.0f}) {
          all.push_back({.temperature = temperature,
                         .top_k = top_k,
                         .top_p = top_p,
                         .min_p = min_p,
                         .seed = ++seed});
        }
      }
    }
  }
  return all;
}

TEST_F(RowSamplerTest, ChoosesTheHostsTokenWithEveryCombinationOfOptions) {
  for (const int vocab_size : kVocabularies) {
    if (!Create(vocab_size)) return;
    std::vector<SampledCase> cases;
    uint32_t row_seed = 0;
    for (const SamplingParams& params : ParamsOfEveryKind()) {
      ++row_seed;
      cases.push_back(
          {row_seed % 4 == 0 ? RowWithTies(vocab_size, row_seed) : RandomRow(vocab_size, row_seed),
           SamplerState(params, {})});
      if (cases.size() < 16) continue;
      Compare(cases);
      cases.clear();
    }
    Compare(cases);
  }
  ExpectFewDisagreements(500);
}

TEST_F(RowSamplerTest, AppliesPenaltiesBiasesAndForbiddenTokensAsTheHostDoes) {
  for (const int vocab_size : kVocabularies) {
    if (!Create(vocab_size)) return;
    std::vector<SampledCase> cases;
    for (uint32_t seed = 0; seed < 24; ++seed) {
      std::mt19937 random(seed);
      const auto any_token = [&] { return static_cast<int32_t>(random() % vocab_size); };
      SamplingParams params = {.temperature = seed % 3 == 0 ? 0.0f : 1.0f,
                               .top_k = seed % 4 == 0 ? 20 : 0,
                               .repetition_penalty = seed % 2 == 0 ? 1.3f : 1.0f,
                               .presence_penalty = seed % 5 == 0 ? 0.0f : 0.7f,
                               .frequency_penalty = seed % 7 == 0 ? 0.0f : -0.3f,
                               .seed = seed,
                               .logprobs = 3};
      // The same token more than once, in any order.
      for (int i = 0; i < 40; ++i) {
        params.logit_bias.push_back({any_token(), static_cast<float>(random() % 200) / 10 - 10});
      }
      std::vector<int32_t> prompt;
      for (int i = 0; i < 700; ++i) prompt.push_back(any_token());
      SamplerState state(params, prompt);
      for (int i = 0; i < 60; ++i) state.Accept(any_token());
      std::vector<int32_t> forbidden;
      for (int i = 0; i < 5 && vocab_size > 5; ++i) forbidden.push_back(any_token());
      state.Forbid(forbidden);
      cases.push_back({RandomRow(vocab_size, seed), std::move(state)});
    }
    Compare(cases);
  }
  ExpectFewDisagreements(500);
}

TEST_F(RowSamplerTest, BreaksTiesOfAWholeRowByRisingId) {
  for (const int vocab_size : {1000, 151936}) {
    if (!Create(vocab_size)) return;
    std::vector<float> two_values(vocab_size, -3.0f);
    for (int i = 0; i < vocab_size; i += 7) two_values[i] = 2.0f;
    std::vector<SampledCase> cases;
    for (const std::vector<float>& row : {std::vector<float>(vocab_size, 1.25f), two_values}) {
      for (const SamplingParams& params :
           {SamplingParams{.logprobs = 20}, SamplingParams{.top_k = 5},
            SamplingParams{.top_k = 999}, SamplingParams{.top_k = 50000},
            SamplingParams{.top_p = 0.3f},
            SamplingParams{.top_k = 70000, .top_p = 0.6f, .min_p = 0.5f},
            SamplingParams{.top_p = 0.99f, .min_p = 0.9f}}) {
        for (uint64_t seed = 0; seed < 4; ++seed) {
          SamplingParams seeded = params;
          seeded.seed = seed;
          cases.push_back({row, SamplerState(seeded, {})});
        }
      }
    }
    Compare(cases);
  }
  ExpectFewDisagreements(50);
}

TEST_F(RowSamplerTest, GivesTheHostsTokenForThousandsOfDraws) {
  for (const int vocab_size : {1000, 151936}) {
    if (!Create(vocab_size)) return;
    const std::vector<float> row = RandomRow(vocab_size, 11, 2.0f);
    for (const SamplingParams& params :
         {SamplingParams{}, SamplingParams{.top_p = 0.9f},
          SamplingParams{.temperature = 0.4f, .top_p = 0.9f, .min_p = 0.001f},
          SamplingParams{.top_k = 40},
          SamplingParams{.temperature = 0.7f, .top_k = 200, .top_p = 0.8f, .min_p = 0.02f}}) {
      SamplerState state(params, {});
      for (int call = 0; call < 32; ++call) {
        std::vector<RowSampling> asked;
        std::vector<int32_t> want;
        std::vector<LogitAdjustment> adjustments;
        for (int i = 0; i < kMaxRows; ++i) {
          asked.push_back(MakeRowSampling(state, 0, &adjustments));
          want.push_back(OnHost(row, state).token);
          state.Accept(want.back());
        }
        const std::vector<SampledRow> got = Ask(row, asked, adjustments);
        for (int i = 0; i < kMaxRows; ++i) {
          ++compared_;
          disagreements_ += got[i].token == want[i] ? 0 : 1;
        }
      }
    }
  }
  ExpectFewDisagreements(1000);
}

}  // namespace
}  // namespace moed::backend
