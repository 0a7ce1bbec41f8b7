// What a GPU says of the rows it sampled besides their tokens, against the host's Sampler: which
// are invalid, and log-probabilities; and which rows it refuses.
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/runtime/backend/cuda/sampling/sampled_rows_test.h"

namespace moed::backend {
namespace {

using model::ChunkResult;
using model::SamplerState;
using model::SamplingParams;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class RowResultsTest : public SampledRowsTest {};

TEST_F(RowResultsTest, SaysWhichRowsAreInvalidAndSamplesTheOthers) {
  for (const int vocab_size : {8, 1000, 151936}) {
    if (!Create(vocab_size)) return;
    std::vector<SampledCase> cases;
    const int places[] = {0, 7, vocab_size / 2, vocab_size - 1};
    for (const float value : {kNan, -kNan, kInfinity, -kInfinity}) {
      for (const int place : places) {
        std::vector<float> row = RandomRow(vocab_size, 1);
        row[place] = value;
        cases.push_back({std::move(row), SamplerState({.top_p = 0.9f, .logprobs = 2}, {})});
      }
    }
    cases.push_back({std::vector<float>(vocab_size, -kInfinity), SamplerState({}, {})});
    std::vector<float> one_left(vocab_size, -kInfinity);
    one_left[5] = -1e30f;
    cases.push_back({one_left, SamplerState({.top_k = 3}, {})});
    cases.push_back({one_left, SamplerState({.top_p = 0.5f}, {})});
    SamplerState forbids_it({}, {});
    forbids_it.Forbid({5});
    cases.push_back({one_left, forbids_it});
    SamplerState forbids_all({.top_k = 5, .logprobs = 1}, {});
    std::vector<int32_t> all(vocab_size);
    for (int i = 0; i < vocab_size; ++i) all[i] = i;
    forbids_all.Forbid(all);
    cases.push_back({RandomRow(vocab_size, 2), forbids_all});
    // A penalty that takes a logit beyond the largest float.
    std::vector<float> huge = RandomRow(vocab_size, 3);
    huge[3] = 3e38f;
    const std::vector<int32_t> prompt = {3};
    cases.push_back({huge, SamplerState({.repetition_penalty = 0.01f}, prompt)});
    cases.push_back({huge, SamplerState({.repetition_penalty = 1.5f}, prompt)});
    Compare(cases);
  }
  EXPECT_EQ(disagreements_, 0);
}

TEST_F(RowResultsTest, GivesLogprobsOfTheTokenAndTheMostProbableOnes) {
  for (const int vocab_size : kVocabularies) {
    if (!Create(vocab_size)) return;
    std::vector<SampledCase> cases;
    for (const int logprobs : {0, 1, 5, 20}) {
      for (uint32_t seed = 0; seed < 4; ++seed) {
        const SamplingParams params = {.seed = seed, .logprobs = logprobs};
        cases.push_back({RandomRow(vocab_size, seed), SamplerState(params, {})});
        cases.push_back({RowWithTies(vocab_size, seed), SamplerState(params, {})});
      }
    }
    Compare(cases);
  }
  ExpectFewDisagreements(50);
}

TEST_F(RowResultsTest, GivesLogprobsOfGivenTokens) {
  for (const int vocab_size : kVocabularies) {
    if (!Create(vocab_size)) return;
    std::vector<float> logits;
    std::vector<RowSampling> asked;
    for (int row = 0; row < 5; ++row) {
      const std::vector<float> one = RandomRow(vocab_size, row);
      logits.insert(logits.end(), one.begin(), one.end());
      // Not in order of rows.
      asked.push_back({.row = 4 - row, .token = row * 977 % vocab_size, .logprobs = row});
    }
    const std::vector<SampledRow> got = Ask(logits, asked, {});
    for (int i = 0; i < 5; ++i) {
      const std::vector<model::TokenLogprob> want =
          model::Sampler(vocab_size)
              .Logprobs(std::span(logits).subspan(size_t(asked[i].row) * vocab_size, vocab_size),
                        asked[i].token, asked[i].logprobs);
      ChunkResult result;
      result.logprob = want.front().logprob;
      result.top_logprobs.assign(want.begin() + 1, want.end());
      EXPECT_EQ(got[i].invalid, 0);
      EXPECT_EQ(got[i].token, asked[i].token);
      ExpectLogprobs(got[i], result, asked[i].logprobs);
    }
  }
}

TEST_F(RowResultsTest, ARowsResultDependsOnNothingElseInTheBatch) {
  constexpr int kVocab = 151936;
  if (!Create(kVocab)) return;
  std::vector<SampledCase> cases;
  for (uint32_t seed = 0; seed < kMaxRows; ++seed) {
    cases.push_back({RandomRow(kVocab, seed), SamplerState({.temperature = 1 + 0.1f * (seed % 5),
                                                            .top_k = seed % 3 == 0 ? 30 : 0,
                                                            .top_p = seed % 2 == 0 ? 0.9f : 1.0f,
                                                            .seed = seed,
                                                            .logprobs = static_cast<int>(seed % 4)},
                                                           {})});
  }
  const std::vector<SampledRow> together = Ask(cases);
  for (size_t i = 0; i < cases.size(); i += 5) {
    const SampledRow alone = Ask(std::vector<SampledCase>{cases[i]}).front();
    EXPECT_EQ(alone.token, together[i].token);
    EXPECT_EQ(alone.logprob, together[i].logprob);
  }
}

TEST_F(RowResultsTest, RefusesRowsThatNoClusterHolds) {
  const auto sampler = backend_->CreateRowSampler({.vocab_size = 1 << 20, .max_rows = 1});
  EXPECT_TRUE(absl::IsUnimplemented(sampler.status())) << sampler.status();
}

}  // namespace
}  // namespace moed::backend
