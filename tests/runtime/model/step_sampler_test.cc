// Steps sampled where the logits lie against the same steps sampled on the host.
#include "runtime/model/step_sampler.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "tests/golden/golden_case.h"
#include "tests/runtime/model/reference_row_sampler.h"
#include "tests/runtime/model/test_model.h"

namespace moed::model {
namespace {

using testing::TestModel;

constexpr int kBlocksPerSequence = 8;

// A sequence that is sampled by both, each with a state of its own.
struct Sequence {
  std::vector<int32_t> tokens;
  int context = 0;  // tokens that have run
  int prompt_logprobs = -1;
  std::vector<int32_t> blocks;
  SamplerState on_device;
  SamplerState on_host;
};

class StepSamplerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (testing::TestsUseCuda() && !backend::CudaAvailable()) {
      GTEST_SKIP() << "no GPU on this machine, or no CUDA in this build";
    }
    auto model = TestModel::Create(
        {.directory = testing::LoadGoldenCase("demo")->checkpoint_directory, .device_tokens = 16});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    if (model_->experts().device() == nullptr) GTEST_SKIP() << "the device takes no such experts";
    vocab_size_ = static_cast<int>(model_->config().vocab_size);
    // Few rows at a time, so that steps take several.
    const backend::RowSamplerOptions options = {.vocab_size = vocab_size_, .max_rows = 2};
    auto on_device = model_->backend().CreateRowSampler(options);
    std::unique_ptr<backend::RowSampler> sampler;
    if (on_device.ok()) {
      sampler = *std::move(on_device);
    } else if (!testing::TestsUseCuda()) {
      sampler = std::make_unique<testing::ReferenceRowSampler>(options);
    } else {
      GTEST_SKIP() << on_device.status();
    }
    on_device_ = std::make_unique<StepSampler>(vocab_size_, std::move(sampler), model_->backend());
    on_host_ = std::make_unique<StepSampler>(vocab_size_, nullptr, model_->backend());
  }

  void Add(std::vector<int32_t> prompt, const SamplingParams& params, int prompt_logprobs = -1) {
    const SamplerState state(params, prompt);
    std::vector<int32_t> blocks(kBlocksPerSequence);
    std::iota(blocks.begin(), blocks.end(),
              static_cast<int32_t>(sequences_.size()) * kBlocksPerSequence);
    sequences_.push_back({.tokens = std::move(prompt),
                          .prompt_logprobs = prompt_logprobs,
                          .blocks = std::move(blocks),
                          .on_device = state,
                          .on_host = state});
  }

  // All tokens of `sequences` that have not run.
  static StepInput InputOf(std::span<Sequence* const> sequences) {
    StepInput input;
    for (Sequence* sequence : sequences) {
      const auto begin = sequence->tokens.begin() + sequence->context;
      input.chunks.push_back({.num_tokens = static_cast<int>(sequence->tokens.end() - begin),
                              .context_start = sequence->context,
                              .kv_blocks = sequence->blocks,
                              .sampler = &sequence->on_device,
                              .prompt_logprobs = sequence->prompt_logprobs});
      input.token_ids.insert(input.token_ids.end(), begin, sequence->tokens.end());
    }
    return input;
  }

  // Samples what has run by both, and continues the sequences with their tokens.
  void SampleByBoth(std::span<Sequence* const> sequences, const StepInput& input, LogitsOf source) {
    StepInput of_host = input;
    for (size_t i = 0; i < sequences.size(); ++i) {
      of_host.chunks[i].sampler = &sequences[i]->on_host;
    }
    StepResult got, want;
    ASSERT_TRUE(on_device_->Sample(input, source, model_->transformer(), &got).ok());
    ASSERT_TRUE(on_host_->Sample(of_host, source, model_->transformer(), &want).ok());
    ASSERT_EQ(got.chunks.size(), want.chunks.size());
    for (size_t i = 0; i < sequences.size(); ++i) {
      ExpectSame(got.chunks[i], want.chunks[i]);
      EXPECT_EQ(sequences[i]->on_device.num_accepted(), sequences[i]->on_host.num_accepted());
      sequences[i]->context = static_cast<int>(sequences[i]->tokens.size());
      sequences[i]->prompt_logprobs = -1;
      if (want.chunks[i].token >= 0) sequences[i]->tokens.push_back(want.chunks[i].token);
    }
  }

  void Step(std::span<Sequence* const> sequences) {
    const StepInput input = InputOf(sequences);
    ASSERT_TRUE(model_->transformer().Forward(input).ok());
    SampleByBoth(sequences, input, LogitsOf::kStep);
    std::vector<ExpertShare> shares;
    ASSERT_TRUE(model_->transformer().EndStep(&shares).ok());
    EXPECT_EQ(shares.size(), sequences.size());
  }

  static void ExpectSame(const TokenLogprob& got, const TokenLogprob& want) {
    EXPECT_EQ(got.id, want.id);
    EXPECT_NEAR(got.logprob, want.logprob, 1e-6 + 1e-5 * std::abs(want.logprob));
  }

  static void ExpectSame(const std::vector<TokenLogprob>& got,
                         const std::vector<TokenLogprob>& want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) ExpectSame(got[i], want[i]);
  }

  static void ExpectSame(const ChunkResult& got, const ChunkResult& want) {
    EXPECT_EQ(got.invalid, want.invalid);
    ExpectSame(TokenLogprob{got.token, got.logprob}, TokenLogprob{want.token, want.logprob});
    ExpectSame(got.top_logprobs, want.top_logprobs);
    ASSERT_EQ(got.prompt_logprobs.size(), want.prompt_logprobs.size());
    for (size_t i = 0; i < want.prompt_logprobs.size(); ++i) {
      ExpectSame(got.prompt_logprobs[i], want.prompt_logprobs[i]);
    }
  }

  std::vector<int32_t> Tokens(int count, int seed) const {
    std::vector<int32_t> tokens(count);
    for (int i = 0; i < count; ++i) tokens[i] = (seed + i * 37 + i * i * 11) % vocab_size_;
    return tokens;
  }

  std::unique_ptr<TestModel> model_;
  int vocab_size_ = 0;
  std::unique_ptr<StepSampler> on_device_;
  std::unique_ptr<StepSampler> on_host_;
  std::vector<Sequence> sequences_;
};

TEST_F(StepSamplerTest, PrefillsAndDecodesGiveTheHostsResults) {
  Add(Tokens(30, 1), {.temperature = 0, .logprobs = 0}, 3);
  Add(Tokens(5, 2), {.seed = 2});
  Add(Tokens(6, 3),
      {.top_k = 40, .top_p = 0.9f, .repetition_penalty = 1.2f, .seed = 3, .logprobs = 5}, 0);
  Add(Tokens(1, 4), {.top_p = 0.95f, .presence_penalty = 1, .seed = 4, .logprobs = 20});
  // More than the device has room for: such rows are the host's.
  std::vector<std::pair<int32_t, float>> many_biases;
  for (int i = 0; i < 3 * backend::kAdjustmentsPerRow; ++i) {
    many_biases.emplace_back(i % vocab_size_, static_cast<float>(i % 5) * 0.1f);
  }
  Add(Tokens(3, 5), {.min_p = 0.01f, .seed = 5, .logit_bias = many_biases, .logprobs = 2});
  std::vector<Sequence*> all;
  for (Sequence& sequence : sequences_) all.push_back(&sequence);
  for (int step = 0; step < 20; ++step) Step(all);
  for (Sequence* sequence : all) EXPECT_EQ(sequence->on_device.num_accepted(), 20);
}

TEST_F(StepSamplerTest, APassGivesTheHostsResults) {
  Add(Tokens(40, 6), {.seed = 6, .logprobs = 1}, 2);
  Add(Tokens(4, 7), {.seed = 7});
  Sequence* const of_pass[] = {&sequences_[0]};
  Sequence* const beside[] = {&sequences_[1]};
  const StepInput input = InputOf(of_pass);
  model_->transformer().BeginPass(input);
  while (model_->transformer().pass_layers_left() > 0) {
    ASSERT_TRUE(model_->transformer().AdvancePass(2).ok());
    Step(beside);
  }
  SampleByBoth(of_pass, input, LogitsOf::kPass);
  std::vector<ExpertShare> shares;
  model_->transformer().EndPass(&shares);
  Step(of_pass);
}

TEST_F(StepSamplerTest, NothingLeftToChooseIsInvalid) {
  Add(Tokens(4, 8), {.seed = 8, .logprobs = 1});
  Add(Tokens(4, 9), {.seed = 9});
  std::vector<int32_t> all_tokens(vocab_size_);
  std::iota(all_tokens.begin(), all_tokens.end(), 0);
  sequences_[0].on_device.Forbid(all_tokens);
  sequences_[0].on_host.Forbid(all_tokens);
  Sequence* const both[] = {&sequences_[0], &sequences_[1]};
  Step(both);
  EXPECT_EQ(sequences_[0].on_device.num_accepted(), 0);
  EXPECT_EQ(sequences_[1].on_device.num_accepted(), 1);
}

}  // namespace
}  // namespace moed::model
