// What the engine generates: order, ends, limits, n, preemption, log-probabilities, the bill.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <vector>

#include "runtime/engine/engine.h"
#include "tests/runtime/engine/recording_sink.h"
#include "tests/runtime/engine/scripted_runner.h"

namespace moed::engine {
namespace {

using ::testing::ElementsAre;

// The tokens that follow `prompt` when the model is `next`.
std::vector<int32_t> Expected(const ScriptedRunner::NextToken& next, std::vector<int32_t> prompt,
                              int count) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(next(prompt));
    prompt.push_back(tokens.back());
  }
  return tokens;
}

std::vector<int32_t> Prompt(int length, int32_t first) {
  std::vector<int32_t> prompt(length);
  for (int i = 0; i < length; ++i) prompt[i] = (first + i * 7) % 2000 + 10;
  return prompt;
}

class EngineGenerationTest : public ::testing::Test {
 protected:
  // A model that says `tokens` after any prompt of `prompt_tokens`, then eos for ever.
  void Say(std::vector<int32_t> tokens, size_t prompt_tokens = 1) {
    Start([tokens, prompt_tokens](const std::vector<int32_t>& context) {
      const size_t i = context.size() - prompt_tokens;
      return i < tokens.size() ? tokens[i] : kEos;
    });
  }
  void Start(ScriptedRunner::NextToken next) {
    runner_ = std::make_unique<ScriptedRunner>(options_, std::move(next));
    engine_ = Engine::Create(options_, runner_.get(), nullptr);
  }
  std::shared_ptr<RecordingSink> Submit(Request request) {
    return SubmitTo(*engine_, std::move(request));
  }
  std::shared_ptr<RecordingSink> Finished(Request request) {
    auto sink = Submit(std::move(request));
    EXPECT_TRUE(sink->AwaitDone().ok());
    return sink;
  }

  EngineOptions options_ = TestOptions();
  std::unique_ptr<ScriptedRunner> runner_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineGenerationTest, StreamsTheTokensOfEverySequenceInOrder) {
  const auto next = ScriptedRunner::HashOfContext(options_.vocab_size);
  Start(next);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 40; ++i) sinks.push_back(Submit(TestRequest(Prompt(1 + i * 2, i), 30, {})));
  for (int i = 0; i < 40; ++i) {
    EXPECT_TRUE(sinks[i]->AwaitDone().ok());
    EXPECT_EQ(sinks[i]->Ids(), Expected(next, Prompt(1 + i * 2, i), 30)) << i;
    EXPECT_EQ(sinks[i]->Finish().reason, FinishReason::kLength);
  }
  EXPECT_GT(runner_->max_chunks_in_a_step(), 1);
}

TEST_F(EngineGenerationTest, HandsAStepsTokensOverOnceTheNextHasBegun) {
  Start(ScriptedRunner::HashOfContext(options_.vocab_size));
  runner_->AllowSteps(1);
  const auto sink = Submit(TestRequest(Prompt(5, 0), 3, {}));
  runner_->AwaitHeld();
  sink->AwaitTokens(1);
  EXPECT_EQ(runner_->steps(), 1);
  EXPECT_EQ(runner_->steps_begun(), 2);
  runner_->Release();
  EXPECT_TRUE(sink->AwaitDone().ok());
  EXPECT_EQ(runner_->steps_begun(), runner_->steps());
}

TEST_F(EngineGenerationTest, EndsAtTheEndTokenAndCountsIt) {
  Say({5, 6, kEos, 7});
  const auto sink = Finished(TestRequest({1}, 10, {}));
  EXPECT_THAT(sink->Ids(), ElementsAre(5, 6, kEos));
  EXPECT_EQ(sink->Finish().reason, FinishReason::kStop);
  EXPECT_EQ(sink->Finish().matched_token, kEos);
  EXPECT_EQ(sink->usage().completion_tokens, 3);
}

TEST_F(EngineGenerationTest, EndsAtARequestsOwnStopToken) {
  Say({5, 6, 7, 8});
  Request request = TestRequest({1}, 10, {});
  request.stop_token_ids = {7};
  const auto sink = Finished(std::move(request));
  EXPECT_THAT(sink->Ids(), ElementsAre(5, 6, 7));
  EXPECT_EQ(sink->Finish().matched_token, 7);
}

TEST_F(EngineGenerationTest, IgnoresTheEndTokenIfAsked) {
  Say({5, kEos, 6, kEos});
  Request request = TestRequest({1}, 4, {});
  request.ignore_eos = true;
  const auto sink = Finished(std::move(request));
  EXPECT_THAT(sink->Ids(), ElementsAre(5, kEos, 6, kEos));
  EXPECT_EQ(sink->Finish().reason, FinishReason::kLength);
}

TEST_F(EngineGenerationTest, ForbidsEndTokensUntilMinTokens) {
  Say({kEos, 5, kEos, kEos});
  Request request = TestRequest({1}, 10, {});
  request.min_tokens = 3;
  // The runner takes the next token id in place of a forbidden one.
  EXPECT_THAT(Finished(std::move(request))->Ids(), ElementsAre(kEos + 1, 5, kEos + 1, kEos));
}

TEST_F(EngineGenerationTest, EndsAtMaxTokens) {
  Say({5, 6, 7});
  const auto sink = Finished(TestRequest({1}, 2, {}));
  EXPECT_THAT(sink->Ids(), ElementsAre(5, 6));
  EXPECT_EQ(sink->Finish().reason, FinishReason::kLength);
  EXPECT_EQ(sink->Finish().matched_token, std::nullopt);
}

TEST_F(EngineGenerationTest, EndsWhereTheContextEnds) {
  const auto next = ScriptedRunner::HashOfContext(options_.vocab_size);
  Start(next);
  for (int64_t max_tokens : {int64_t{0}, int64_t{1000}, INT64_MAX}) {
    const auto sink = Finished(TestRequest(Prompt(100, 3), max_tokens, {}));
    EXPECT_EQ(sink->Ids(), Expected(next, Prompt(100, 3), 28));
    EXPECT_EQ(sink->Finish().reason, FinishReason::kLength);
  }
}

TEST_F(EngineGenerationTest, GeneratesNSequencesFromOnePrefill) {
  const auto next = ScriptedRunner::HashOfContext(options_.vocab_size);
  Start(next);
  Request request = TestRequest(Prompt(50, 3), 20, {});
  request.n = 3;
  const auto sink = Finished(std::move(request));
  for (int index = 0; index < 3; ++index) {
    EXPECT_EQ(sink->Ids(index), Expected(next, Prompt(50, 3), 20));
    EXPECT_EQ(sink->Finish(index).reason, FinishReason::kLength);
  }
  EXPECT_EQ(sink->usage().prompt_tokens, 50);
  EXPECT_EQ(sink->usage().completion_tokens, 60);
  // The scripted runner counts a hit a token: 50 once, 2 for each fork, then 19 decodes each.
  EXPECT_EQ(sink->usage().experts.hits, 50 + 2 * 2 + 3 * 19);
}

TEST_F(EngineGenerationTest, EqualsTheRoomyRunWhenMemoryForcesPreemption) {
  const auto next = ScriptedRunner::HashOfContext(options_.vocab_size);
  options_.num_kv_blocks = 10;
  options_.kv_block_tokens = 4;
  options_.max_model_len = 40;
  Start(next);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 30; ++i) {
    Request request = TestRequest(Prompt(1 + i % 9, i), 1 + i % 28, {});
    request.n = 1 + i % 3;
    sinks.push_back(Submit(std::move(request)));
  }
  for (int i = 0; i < 30; ++i) {
    EXPECT_TRUE(sinks[i]->AwaitDone().ok());
    for (int index = 0; index < 1 + i % 3; ++index) {
      EXPECT_EQ(sinks[i]->Ids(index), Expected(next, Prompt(1 + i % 9, i), 1 + i % 28)) << i;
    }
  }
  EXPECT_GT(engine_->Snapshot().preemptions_total, 10);
}

TEST_F(EngineGenerationTest, HandsOutLogprobsOfTokensAndPrompt) {
  options_.max_num_batched_tokens = 4;  // several chunks
  Say({5, 6}, 10);
  Request request = TestRequest(Prompt(10, 3), 2, {});
  request.sampling.logprobs = 2;
  request.prompt_logprobs = 0;
  request.n = 2;
  const auto sink = Finished(std::move(request));
  ASSERT_EQ(sink->Tokens().size(), 2u);
  EXPECT_EQ(sink->Tokens()[1].logprob, -0.5f);
  EXPECT_EQ(sink->Tokens()[1].top.size(), 2u);
  ASSERT_EQ(sink->PromptLogprobs().size(), 10u);
  EXPECT_TRUE(sink->PromptLogprobs()[0].empty());
  for (int i = 1; i < 10; ++i) {
    ASSERT_EQ(sink->PromptLogprobs()[i].size(), 1u);
    EXPECT_EQ(sink->PromptLogprobs()[i][0].id, Prompt(10, 3)[i]);
  }
}

TEST_F(EngineGenerationTest, ExpertSharesOfRequestsAddUpToTheTotals) {
  Start(ScriptedRunner::HashOfContext(options_.vocab_size));
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 20; ++i) {
    Request request = TestRequest(Prompt(1 + i * 3, i), 20, {});
    request.n = 1 + i % 4;
    sinks.push_back(Submit(std::move(request)));
  }
  double hits = 0;
  for (const auto& sink : sinks) {
    EXPECT_TRUE(sink->AwaitDone().ok());
    hits += sink->usage().experts.hits;
  }
  EXPECT_EQ(hits, runner_->total_hits());
}

TEST_F(EngineGenerationTest, CountsWhatItDid) {
  Say({5, 6, kEos}, 4);
  for (int i = 0; i < 3; ++i) Finished(TestRequest({1, 3, 4, 5}, i < 2 ? 10 : 2, {}));
  const EngineSnapshot snapshot = engine_->Snapshot();
  EXPECT_EQ(snapshot.steps_total, 3 + 3 + 2);
  EXPECT_EQ(snapshot.prompt_tokens_total, 12);
  EXPECT_EQ(snapshot.generation_tokens_total, 3 + 3 + 2);
  EXPECT_EQ(snapshot.finished_total[static_cast<int>(FinishReason::kStop)], 2);
  EXPECT_EQ(snapshot.finished_total[static_cast<int>(FinishReason::kLength)], 1);
  EXPECT_EQ(snapshot.running, 0);
  EXPECT_EQ(snapshot.waiting, 0);
  EXPECT_EQ(snapshot.waiting_tokens, 0);
  EXPECT_EQ(snapshot.kv_blocks_used, 0);
  EXPECT_EQ(snapshot.kv_blocks_total, 64);
  EXPECT_GT(snapshot.run_seconds_total, 0);
  EXPECT_GT(snapshot.engine_busy_seconds_total, 0);
}

TEST_F(EngineGenerationTest, BillsTimeInOrder) {
  Say({5, 6});
  const auto sink = Finished(TestRequest({1}, 2, {}));
  EXPECT_GT(sink->usage().queue_seconds, 0);
  EXPECT_GE(sink->usage().time_to_first_token_seconds, sink->usage().queue_seconds);
}

}  // namespace
}  // namespace moed::engine
