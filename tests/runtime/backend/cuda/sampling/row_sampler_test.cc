// Rows sampled on a GPU against the host's Sampler, for the same logits and draws.
#include "runtime/backend/row_sampler.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "runtime/model/row_sampling.h"
#include "runtime/model/sampler.h"

namespace moed::backend {
namespace {

using model::ChunkResult;
using model::SamplerState;
using model::SamplingParams;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int kMaxRows = 64;
// A real model's, and sizes that no block, warp or vector divides.
constexpr int kVocabularies[] = {1, 8, 1000, 4099, 151936, 200003};

std::vector<float> RandomRow(int vocab_size, uint32_t seed, float deviation = 3.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> row(vocab_size);
  for (float& logit : row) logit = normal(random);
  return row;
}

// As RandomRow, of few different values.
std::vector<float> RowWithTies(int vocab_size, uint32_t seed) {
  std::vector<float> row = RandomRow(vocab_size, seed);
  for (float& logit : row) logit = std::round(logit);  // 0 and -0 too
  return row;
}

// A row and what is asked of it.
struct Case {
  std::vector<float> logits;
  SamplerState state;
};

class RowSamplerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!CudaAvailable()) GTEST_SKIP() << "no GPU on this machine, or no CUDA in this build";
    backend_ = CreateCudaBackend({}).value();
  }

  // For rows of this size; false, and the test is skipped, if the GPU samples none.
  bool Create(int vocab_size) {
    vocab_size_ = vocab_size;
    auto sampler = backend_->CreateRowSampler({.vocab_size = vocab_size, .max_rows = kMaxRows});
    sampled_on_host_ = absl::IsUnimplemented(sampler.status());
    if (!sampled_on_host_) sampler_ = *std::move(sampler);
    return !sampled_on_host_;
  }

  void TearDown() override {
    if (sampled_on_host_) GTEST_SKIP() << "this GPU has no clusters: rows are sampled on the host";
  }

  // The device's answers for `asked`, rows of `logits` [any, V].
  std::vector<SampledRow> Ask(const std::vector<float>& logits,
                              const std::vector<RowSampling>& asked,
                              const std::vector<LogitAdjustment>& adjustments) {
    const size_t bytes = logits.size() * sizeof(float);
    Buffer memory = backend_->Allocate(bytes, MemoryKind::kDevice, "a test's logits").value();
    EXPECT_TRUE(backend_->CopyFromHost(std::as_bytes(std::span(logits)), memory.data()).ok());
    const auto rows = static_cast<int64_t>(logits.size()) / vocab_size_;
    sampler_->Sample(Tensor(memory.data(), DType::kF32, {rows, vocab_size_}), asked, adjustments);
    EXPECT_TRUE(sampler_->Wait().ok());
    std::vector<float> after(logits.size());
    EXPECT_TRUE(backend_->CopyToHost(memory.data(), std::as_writable_bytes(std::span(after))).ok());
    EXPECT_EQ(std::memcmp(after.data(), logits.data(), bytes), 0) << "the logits were changed";
    return {sampler_->results().begin(), sampler_->results().end()};
  }

  std::vector<SampledRow> Ask(const std::vector<Case>& cases) {
    std::vector<float> logits;
    std::vector<RowSampling> asked;
    std::vector<LogitAdjustment> adjustments;
    for (const Case& one : cases) {
      asked.push_back(MakeRowSampling(one.state, static_cast<int32_t>(asked.size()), &adjustments));
      logits.insert(logits.end(), one.logits.begin(), one.logits.end());
    }
    return Ask(logits, asked, adjustments);
  }

  ChunkResult OnHost(const std::vector<float>& logits, const SamplerState& state) {
    ChunkResult result;
    model::Sampler(vocab_size_).Sample(logits, state, &result);
    return result;
  }

  // Tokens must be the host's; those that are not are counted.
  void Compare(const std::vector<Case>& cases) {
    const std::vector<SampledRow> got = Ask(cases);
    ASSERT_EQ(got.size(), cases.size());
    for (size_t i = 0; i < cases.size(); ++i) {
      const ChunkResult want = OnHost(cases[i].logits, cases[i].state);
      ASSERT_EQ(got[i].invalid != 0, want.invalid) << "row " << i;
      ++compared_;
      if (want.invalid) continue;
      if (got[i].token != want.token) {
        ++disagreements_;
        Report(cases[i], got[i].token, want.token);
        continue;
      }
      ExpectLogprobs(got[i], want, cases[i].state.params().logprobs);
    }
  }

  void Report(const Case& one, int got, int want) const {
    const SamplingParams& params = one.state.params();
    std::printf("V %d, top_k %d, top_p %g, min_p %g, temperature %g, draw %.17g: %d, host %d\n",
                vocab_size_, params.top_k, params.top_p, params.min_p, params.temperature,
                one.state.Draw(), got, want);
  }

  void ExpectLogprobs(const SampledRow& got, const ChunkResult& want, int logprobs) const {
    if (logprobs < 0) return;
    const auto expect_near = [](float value, float of_host) {
      EXPECT_NEAR(value, of_host, 1e-6 + 1e-5 * std::abs(of_host));
    };
    expect_near(got.logprob, want.logprob);
    ASSERT_EQ(want.top_logprobs.size(), static_cast<size_t>(std::min(logprobs, vocab_size_)));
    for (size_t i = 0; i < want.top_logprobs.size(); ++i) {
      EXPECT_EQ(got.top_tokens[i], want.top_logprobs[i].id) << "place " << i;
      expect_near(got.top_logprobs[i], want.top_logprobs[i].logprob);
    }
  }

  // At most one token in `one_in` may differ, for a draw beside a boundary.
  void ExpectFewDisagreements(int one_in) {
    std::printf("%d of %d tokens differ from the host's\n", disagreements_, compared_);
    EXPECT_LE(disagreements_, compared_ / one_in);
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<RowSampler> sampler_;
  bool sampled_on_host_ = false;
  int vocab_size_ = 0;
  int compared_ = 0;
  int disagreements_ = 0;
};

TEST_F(RowSamplerTest, GreedyTakesTheLowestIdOfTheMaximum) {
  for (const int vocab_size : kVocabularies) {
    if (!Create(vocab_size)) return;
    std::vector<Case> cases;
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
    std::vector<Case> cases;
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
    std::vector<Case> cases;
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

TEST_F(RowSamplerTest, SaysWhichRowsAreInvalidAndSamplesTheOthers) {
  for (const int vocab_size : {8, 1000, 151936}) {
    if (!Create(vocab_size)) return;
    std::vector<Case> cases;
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

TEST_F(RowSamplerTest, BreaksTiesOfAWholeRowByRisingId) {
  for (const int vocab_size : {1000, 151936}) {
    if (!Create(vocab_size)) return;
    std::vector<float> two_values(vocab_size, -3.0f);
    for (int i = 0; i < vocab_size; i += 7) two_values[i] = 2.0f;
    std::vector<Case> cases;
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

TEST_F(RowSamplerTest, GivesLogprobsOfTheTokenAndTheMostProbableOnes) {
  for (const int vocab_size : kVocabularies) {
    if (!Create(vocab_size)) return;
    std::vector<Case> cases;
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

TEST_F(RowSamplerTest, GivesLogprobsOfGivenTokens) {
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

TEST_F(RowSamplerTest, ARowsResultDependsOnNothingElseInTheBatch) {
  constexpr int kVocab = 151936;
  if (!Create(kVocab)) return;
  std::vector<Case> cases;
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
    const SampledRow alone = Ask(std::vector<Case>{cases[i]}).front();
    EXPECT_EQ(alone.token, together[i].token);
    EXPECT_EQ(alone.logprob, together[i].logprob);
  }
}

TEST_F(RowSamplerTest, RefusesRowsThatNoClusterHolds) {
  const auto sampler = backend_->CreateRowSampler({.vocab_size = 1 << 20, .max_rows = 1});
  EXPECT_TRUE(absl::IsUnimplemented(sampler.status())) << sampler.status();
}

}  // namespace
}  // namespace moed::backend
