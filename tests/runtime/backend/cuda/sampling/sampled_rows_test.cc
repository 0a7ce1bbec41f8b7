#include "tests/runtime/backend/cuda/sampling/sampled_rows_test.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <span>
#include <utility>

#include "runtime/backend/cuda/cuda_backend.h"
#include "runtime/model/row_sampling.h"

namespace moed::backend {

using model::ChunkResult;
using model::SamplerState;
using model::SamplingParams;

std::vector<float> RandomRow(int vocab_size, uint32_t seed, float deviation) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> row(vocab_size);
  for (float& logit : row) logit = normal(random);
  return row;
}

std::vector<float> RowWithTies(int vocab_size, uint32_t seed) {
  std::vector<float> row = RandomRow(vocab_size, seed);
  for (float& logit : row) logit = std::round(logit);  // 0 and -0 too
  return row;
}

void SampledRowsTest::SetUp() {
  if (!CudaAvailable()) GTEST_SKIP() << "no GPU on this machine, or no CUDA in this build";
  backend_ = CreateCudaBackend({}).value();
}

void SampledRowsTest::TearDown() {
  if (sampled_on_host_) GTEST_SKIP() << "this GPU has no clusters: rows are sampled on the host";
}

bool SampledRowsTest::Create(int vocab_size) {
  vocab_size_ = vocab_size;
  auto sampler = backend_->CreateRowSampler({.vocab_size = vocab_size, .max_rows = kMaxRows});
  sampled_on_host_ = absl::IsUnimplemented(sampler.status());
  if (!sampled_on_host_) sampler_ = *std::move(sampler);
  return !sampled_on_host_;
}

std::vector<SampledRow> SampledRowsTest::Ask(const std::vector<float>& logits,
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

std::vector<SampledRow> SampledRowsTest::Ask(const std::vector<SampledCase>& cases) {
  std::vector<float> logits;
  std::vector<RowSampling> asked;
  std::vector<LogitAdjustment> adjustments;
  for (const SampledCase& one : cases) {
    asked.push_back(MakeRowSampling(one.state, static_cast<int32_t>(asked.size()), &adjustments));
    logits.insert(logits.end(), one.logits.begin(), one.logits.end());
  }
  return Ask(logits, asked, adjustments);
}

ChunkResult SampledRowsTest::OnHost(const std::vector<float>& logits, const SamplerState& state) {
  ChunkResult result;
  model::Sampler(vocab_size_).Sample(logits, state, &result);
  return result;
}

void SampledRowsTest::Compare(const std::vector<SampledCase>& cases) {
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

void SampledRowsTest::ExpectLogprobs(const SampledRow& got, const ChunkResult& want,
                                     int logprobs) const {
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

void SampledRowsTest::ExpectFewDisagreements(int one_in) {
  std::printf("%d of %d tokens differ from the host's\n", disagreements_, compared_);
  EXPECT_LE(disagreements_, compared_ / one_in);
}

void SampledRowsTest::Report(const SampledCase& one, int got, int want) const {
  const SamplingParams& params = one.state.params();
  std::printf("V %d, top_k %d, top_p %g, min_p %g, temperature %g, draw %.17g: %d, host %d\n",
              vocab_size_, params.top_k, params.top_p, params.min_p, params.temperature,
              one.state.Draw(), got, want);
}

}  // namespace moed::backend
