#include "runtime/model/model_runner.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/model/kv_cache.h"
#include "tests/golden/golden_case.h"
#include "tests/runtime/model/converted_checkpoint.h"

namespace moed::model {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

ModelRunnerOptions SmallOptions() {
  return {.memory_limit_bytes = int64_t{512} << 20,
          .max_num_seqs = 4,
          .max_num_batched_tokens = 64,
          .max_model_len = 128,
          .io_threads = 2};
}

absl::StatusOr<std::unique_ptr<ModelRunner>> CreateRunner(const std::string& directory,
                                                          ModelRunnerOptions options) {
  auto checkpoint = OpenCheckpoint({.directory = directory});
  if (!checkpoint.ok()) return checkpoint.status();
  auto backend = backend::CreateCpuBackend({.num_threads = 2});
  if (!backend.ok()) return backend.status();
  return ModelRunner::Create(std::move(options), *std::move(checkpoint), *std::move(backend));
}

class ModelRunnerTest : public ::testing::Test {
 protected:
  ModelRunnerTest() : golden_(*testing::LoadGoldenCase("qwen3_moe_sharded_untied")) {
    for (int i = 0; i < 32; ++i) blocks_.push_back(31 - i);
  }

  std::unique_ptr<ModelRunner> Runner(ModelRunnerOptions options = SmallOptions()) {
    auto runner = CreateRunner(golden_.checkpoint_directory, std::move(options));
    EXPECT_TRUE(runner.ok()) << runner.status();
    return *std::move(runner);
  }

  // `chunk` over all of `tokens`, in blocks of its own.
  StepInput OneChunk(std::vector<int32_t> tokens, SamplerState* sampler) {
    SequenceChunk chunk = {.num_tokens = static_cast<int>(tokens.size()), .kv_blocks = blocks_};
    chunk.sampler = sampler;
    return {.token_ids = std::move(tokens), .chunks = {chunk}};
  }

  testing::GoldenCase golden_;
  std::vector<int32_t> blocks_;
};

TEST_F(ModelRunnerTest, ContinuesPromptsGreedilyAsTheReferenceDoes) {
  const std::unique_ptr<ModelRunner> runner = Runner();
  for (const testing::GoldenPrompt& prompt : golden_.prompts) {
    if (prompt.prompt_tokens > 64) continue;
    const auto split = prompt.token_ids.begin() + prompt.prompt_tokens;
    SamplerState sampler({.temperature = 0}, {});
    StepInput input = OneChunk({prompt.token_ids.begin(), split}, &sampler);
    StepResult result;
    std::vector<int32_t> generated;
    while (generated.size() < static_cast<size_t>(prompt.token_ids.end() - split)) {
      ASSERT_TRUE(runner->Run(input, &result).ok());
      generated.push_back(result.chunks[0].token);
      const int context = input.chunks[0].context_start + input.chunks[0].num_tokens;
      input = OneChunk({generated.back()}, &sampler);
      input.chunks[0].context_start = context;
    }
    EXPECT_THAT(generated, ElementsAreArray(split, prompt.token_ids.end()));
    EXPECT_EQ(sampler.num_accepted(), static_cast<int64_t>(generated.size()));
  }
}

TEST_F(ModelRunnerTest, GivesPromptLogprobsOfEveryTokenAfterTheFirst) {
  const std::unique_ptr<ModelRunner> runner = Runner();
  const std::vector<int32_t> prompt = {5, 9, 77, 3, 120, 14, 9};
  StepResult whole;
  StepInput input = OneChunk(prompt, nullptr);
  input.chunks[0].prompt_logprobs = 2;
  ASSERT_TRUE(runner->Run(input, &whole).ok());
  const auto& logprobs = whole.chunks[0].prompt_logprobs;
  ASSERT_EQ(logprobs.size(), prompt.size() - 1);
  for (size_t i = 0; i < logprobs.size(); ++i) {
    ASSERT_EQ(logprobs[i].size(), 3u);
    EXPECT_EQ(logprobs[i][0].id, prompt[i + 1]);
    EXPECT_GE(logprobs[i][1].logprob, logprobs[i][2].logprob);
    EXPECT_GE(logprobs[i][1].logprob, logprobs[i][0].logprob);
  }
  EXPECT_EQ(whole.chunks[0].token, -1);

  // In two chunks: the first one's last row gives the second one's first token.
  StepResult first, second;
  input = OneChunk({5, 9, 77}, nullptr);
  input.chunks[0].prompt_logprobs = 2;
  input.chunks[0].next_token = 3;
  ASSERT_TRUE(runner->Run(input, &first).ok());
  input = OneChunk({3, 120, 14, 9}, nullptr);
  input.chunks[0].prompt_logprobs = 2;
  input.chunks[0].context_start = 3;
  ASSERT_TRUE(runner->Run(input, &second).ok());
  ASSERT_EQ(first.chunks[0].prompt_logprobs.size(), 3u);
  ASSERT_EQ(second.chunks[0].prompt_logprobs.size(), 3u);
  EXPECT_EQ(first.chunks[0].prompt_logprobs[2][0].id, 3);
  EXPECT_NEAR(second.chunks[0].prompt_logprobs[2][0].logprob, logprobs[5][0].logprob, 0.05);
}

TEST_F(ModelRunnerTest, SharesOfExpertTrafficAddUpToTheCacheTotals) {
  ModelRunnerOptions options = SmallOptions();
  options.expert_budget = "25%";
  options.warm_experts = false;
  const std::unique_ptr<ModelRunner> runner = Runner(std::move(options));
  double hits = 0, misses = 0, bytes = 0, stall = 0;
  for (int step = 0; step < 20; ++step) {
    StepInput input;
    for (int sequence = 0; sequence < 4; ++sequence) {
      const int tokens = 1 + (step + sequence) % 5;
      for (int i = 0; i < tokens; ++i) input.token_ids.push_back((step * 31 + i * 7) % 256);
      input.chunks.push_back(
          {.num_tokens = tokens, .kv_blocks = std::span(blocks_).subspan(sequence, 1)});
    }
    StepResult result;
    ASSERT_TRUE(runner->Run(input, &result).ok());
    for (const ChunkResult& chunk : result.chunks) {
      hits += chunk.experts.hits;
      misses += chunk.experts.misses;
      bytes += chunk.experts.bytes_paged;
      stall += chunk.experts.stall_seconds;
    }
  }
  cache::LayerStats total;
  for (const cache::LayerStats& layer : runner->Snapshot()->cache.layers) {
    total.hits_total += layer.hits_total;
    total.misses_total += layer.misses_total;
    total.bytes_total[0] += layer.bytes_total[0];
    total.stall_seconds_total += layer.stall_seconds_total;
  }
  EXPECT_GT(total.misses_total, 0);
  EXPECT_NEAR(hits, static_cast<double>(total.hits_total), 1e-6);
  EXPECT_NEAR(misses, static_cast<double>(total.misses_total), 1e-6);
  EXPECT_NEAR(bytes, static_cast<double>(total.bytes_total[0]), 1e-3);
  EXPECT_NEAR(stall, total.stall_seconds_total, 1e-9);
}

TEST_F(ModelRunnerTest, APassGivesWhatRunGives) {
  const std::unique_ptr<ModelRunner> runner = Runner();
  std::vector<int32_t> prompt;
  for (int i = 0; i < 60; ++i) prompt.push_back((i * 29 + 7) % 250);
  SamplerState run_sampler({.temperature = 0}, {}), pass_sampler({.temperature = 0}, {});
  StepInput input = OneChunk(prompt, &run_sampler);
  input.chunks[0].prompt_logprobs = 1;
  StepResult whole, sliced, beside;
  ASSERT_TRUE(runner->Run(input, &whole).ok());

  input.chunks[0].sampler = &pass_sampler;
  ASSERT_TRUE(runner->BeginPass(input).ok());
  for (int layer = 0; layer < runner->pass_layers(); ++layer) {
    ASSERT_TRUE(runner->AdvancePass(1).ok());
    StepInput step = OneChunk({static_cast<int32_t>(layer)}, nullptr);
    step.chunks[0].kv_blocks = std::span(blocks_).last(1);
    ASSERT_TRUE(runner->Run(step, &beside).ok());
  }
  ASSERT_TRUE(runner->FinishPass(&sliced).ok());
  EXPECT_EQ(sliced.chunks[0].token, whole.chunks[0].token);
  EXPECT_EQ(sliced.chunks[0].logprob, whole.chunks[0].logprob);
  EXPECT_EQ(pass_sampler.num_accepted(), 1);
  ASSERT_EQ(sliced.chunks[0].prompt_logprobs.size(), whole.chunks[0].prompt_logprobs.size());
  for (size_t i = 0; i < whole.chunks[0].prompt_logprobs.size(); ++i) {
    EXPECT_EQ(sliced.chunks[0].prompt_logprobs[i][0].logprob,
              whole.chunks[0].prompt_logprobs[i][0].logprob);
  }
}

TEST_F(ModelRunnerTest, RunsOnlyDecodeBatchesBesideAPass) {
  const std::unique_ptr<ModelRunner> runner = Runner();
  EXPECT_EQ(runner->max_tokens_beside_pass(), 4);
  StepResult result;
  const StepInput input = OneChunk(std::vector<int32_t>(60, 3), nullptr);
  ASSERT_TRUE(runner->BeginPass(input).ok());
  const StepInput large = OneChunk(std::vector<int32_t>(5, 3), nullptr);
  EXPECT_EQ(runner->Run(large, &result).code(), absl::StatusCode::kInvalidArgument);
  runner->AbandonPass(&result);
  EXPECT_EQ(result.chunks.size(), 1u);
  EXPECT_TRUE(runner->Run(large, &result).ok());
}

TEST_F(ModelRunnerTest, ReportsLoadProgressToItsEnd) {
  ModelRunnerOptions options = SmallOptions();
  int64_t done = 0, total = 0;
  options.progress = [&](int64_t bytes_done, int64_t bytes_total) {
    EXPECT_GE(bytes_done, done);
    done = bytes_done;
    total = bytes_total;
  };
  const std::unique_ptr<ModelRunner> runner = Runner(std::move(options));
  EXPECT_GT(total, 0);
  EXPECT_EQ(done, total);
}

TEST_F(ModelRunnerTest, RefusesStepsThatBreakTheirContract) {
  const std::unique_ptr<ModelRunner> runner = Runner();
  StepResult result;
  StepInput good = OneChunk({1, 2, 3}, nullptr);
  EXPECT_TRUE(runner->Run(good, &result).ok());

  StepInput unknown_token = OneChunk({1, 256, 3}, nullptr);
  StepInput negative_token = OneChunk({1, -1, 3}, nullptr);
  StepInput too_many = OneChunk(std::vector<int32_t>(65, 1), nullptr);
  StepInput miscounted = OneChunk({1, 2, 3}, nullptr);
  miscounted.chunks[0].num_tokens = 2;
  StepInput beyond_blocks = OneChunk({1, 2, 3}, nullptr);
  beyond_blocks.chunks[0].kv_blocks = std::span(blocks_).first(1);
  beyond_blocks.chunks[0].context_start = 14;
  StepInput unknown_block = OneChunk({1, 2, 3}, nullptr);
  const std::vector<int32_t> bad_blocks = {1 << 30};
  unknown_block.chunks[0].kv_blocks = bad_blocks;
  for (const StepInput* input :
       {&unknown_token, &negative_token, &too_many, &miscounted, &beyond_blocks, &unknown_block}) {
    EXPECT_EQ(runner->Run(*input, &result).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(ModelRunnerTest, RefusesOptionsThatCannotBeServed) {
  const auto status_of = [&](void (*change)(ModelRunnerOptions*)) {
    ModelRunnerOptions options = SmallOptions();
    change(&options);
    return CreateRunner(golden_.checkpoint_directory, std::move(options)).status();
  };
  EXPECT_THAT(status_of([](ModelRunnerOptions* o) { o->expert_budget = "1slots"; }).ToString(),
              HasSubstr("smallest legal budget is 2slots"));
  EXPECT_THAT(status_of([](ModelRunnerOptions* o) { o->expert_budget = "much"; }).ToString(),
              HasSubstr("12.5%"));
  EXPECT_THAT(status_of([](ModelRunnerOptions* o) { o->expert_policy = "fifo"; }).ToString(),
              HasSubstr("recency-frequency"));
  EXPECT_THAT(status_of([](ModelRunnerOptions* o) { o->max_num_seqs = 0; }).ToString(),
              HasSubstr("max_num_seqs"));
  EXPECT_THAT(status_of([](ModelRunnerOptions* o) { o->memory_limit_bytes = 1 << 20; }).ToString(),
              HasSubstr("does not fit"));
}

// The demo model, whose hidden size suits bf12.
class ExpertFormatTest : public ModelRunnerTest {
 protected:
  ExpertFormatTest() { golden_ = *testing::LoadGoldenCase("demo"); }

  // Greedy continuation of a short prompt.
  std::vector<int32_t> Continue(ModelRunner& runner) {
    SamplerState sampler({.temperature = 0}, {});
    StepInput input = OneChunk({5, 9, 77, 3, 120}, &sampler);
    std::vector<int32_t> tokens;
    while (tokens.size() < 24) {
      StepResult result;
      EXPECT_TRUE(runner.Run(input, &result).ok());
      tokens.push_back(result.chunks[0].token);
      const int context = input.chunks[0].context_start + input.chunks[0].num_tokens;
      input = OneChunk({tokens.back()}, &sampler);
      input.chunks[0].context_start = context;
    }
    return tokens;
  }
};

TEST_F(ExpertFormatTest, Bf12FromEitherKindOfFileContinuesAlike) {
  const ConvertedCheckpoint converted(golden_.checkpoint_directory);
  const std::vector<int32_t> expected = Continue(*Runner());
  ModelRunnerOptions options = SmallOptions();
  options.expert_format = ExpertFormatPreference::kBF12;
  const std::unique_ptr<ModelRunner> encoded = Runner(options);
  EXPECT_EQ(Continue(*encoded), expected);
  golden_.checkpoint_directory = converted.directory();
  const std::unique_ptr<ModelRunner> stored = Runner();
  EXPECT_EQ(Continue(*stored), expected);
  EXPECT_EQ(encoded->expert_format().kind(), backend::ExpertFormatKind::kBF12);
  EXPECT_EQ(stored->expert_format().kind(), backend::ExpertFormatKind::kBF12);
  options.expert_format = ExpertFormatPreference::kBF16;
  options.expert_budget = "33%";
  const std::unique_ptr<ModelRunner> decoded = Runner(options);
  EXPECT_EQ(decoded->expert_format().kind(), backend::ExpertFormatKind::kBF16);
  EXPECT_EQ(Continue(*decoded), expected);
}

TEST_F(ExpertFormatTest, NothingIsEncodedOnARequest) {
  ModelRunnerOptions options = SmallOptions();
  options.expert_format = ExpertFormatPreference::kBF12;
  options.warm_deadline = absl::InfinitePast();  // which loading by need does not heed
  const std::unique_ptr<ModelRunner> runner = Runner(options);
  int resident = 0;
  for (const cache::LayerStats& layer : runner->Snapshot()->cache.layers) {
    resident += layer.resident;
  }
  EXPECT_EQ(resident, 6 * 32);
  const absl::Status shrunk = runner->SetExpertBudget("50%").status();
  EXPECT_EQ(shrunk.code(), absl::StatusCode::kFailedPrecondition);
  options.expert_budget = "50%";
  const absl::Status status = CreateRunner(golden_.checkpoint_directory, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("moed convert"));
}

TEST_F(ExpertFormatTest, BudgetsCountStoredBytes) {
  const ConvertedCheckpoint converted(golden_.checkpoint_directory);
  ModelRunnerOptions options = SmallOptions();
  options.expert_budget = "2MiB";
  const auto slots = [&](const std::string& directory) {
    golden_.checkpoint_directory = directory;
    return Runner(options)->Snapshot()->cache.num_slots;
  };
  const auto blob_bytes = static_cast<int>(converted.result().format.blob_bytes());
  EXPECT_EQ(slots(golden_.checkpoint_directory), (2 << 20) / (3 * 2 * 128 * 64));
  EXPECT_EQ(slots(converted.directory()), (2 << 20) / blob_bytes);
}

}  // namespace
}  // namespace moed::model
