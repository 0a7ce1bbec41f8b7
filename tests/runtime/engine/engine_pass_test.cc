// Prefill in passes, between whose layers others decode: what they generate, and how requests end
// while their prefill is in flight.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/engine/engine.h"
#include "tests/runtime/engine/recording_sink.h"
#include "tests/runtime/engine/scripted_runner.h"

namespace moed::engine {
namespace {

constexpr int kLayers = 6;

class EnginePassTest : public ::testing::Test {
 protected:
  void SetUp() override { Start(); }
  void TearDown() override {
    if (runner_ == nullptr) return;
    runner_->AllowSlices(INT64_MAX);
    runner_->Release();
    engine_.reset();
  }
  void Start() {
    engine_.reset();
    runner_ = std::make_unique<ScriptedRunner>(
        options_, ScriptedRunner::HashOfContext(options_.vocab_size), kLayers);
    // A prompt takes far longer than a step of decodes, so that it becomes a pass beside them.
    runner_->SetPrefillTime(std::chrono::milliseconds(2));
    engine_ = Engine::Create(options_, runner_.get(), nullptr);
  }
  std::shared_ptr<RecordingSink> Submit(const std::string& id, int prompt_tokens, int max_tokens,
                                        absl::Time deadline = absl::InfiniteFuture(), int n = 1) {
    Request request = TestRequest(PromptOf(prompt_tokens), max_tokens, {});
    request.id = id;
    request.deadline = deadline;
    request.n = n;
    return SubmitTo(*engine_, std::move(request));
  }
  // Something decodes, and both costs have been measured; the next step is held.
  std::shared_ptr<RecordingSink> StartDecoding(int max_tokens = 110) {
    runner_->AllowSteps(5);
    auto sink = Submit("decoding", 18, max_tokens);
    runner_->AwaitHeld();
    return sink;
  }
  static std::vector<int32_t> PromptOf(int tokens) {
    std::vector<int32_t> prompt(tokens);
    for (int i = 0; i < tokens; ++i) prompt[i] = (tokens * 31 + i * 7) % 2000 + 10;
    return prompt;
  }
  std::vector<int32_t> Expected(int prompt_tokens, int count) {
    const auto next = ScriptedRunner::HashOfContext(options_.vocab_size);
    std::vector<int32_t> context = PromptOf(prompt_tokens);
    for (int i = 0; i < count; ++i) context.push_back(next(context));
    return {context.begin() + prompt_tokens, context.end()};
  }
  // Goes on until a pass is about to run its first layer.
  void AwaitPassInFlight() {
    runner_->Release();
    runner_->AwaitPassHeld();
  }
  void ExpectNothingLeft() {
    const EngineSnapshot snapshot = engine_->Snapshot();
    EXPECT_EQ(snapshot.running, 0);
    EXPECT_EQ(snapshot.waiting, 0);
    EXPECT_EQ(snapshot.kv_blocks_used, 0);
  }

  EngineOptions options_ = TestOptions();
  std::unique_ptr<ScriptedRunner> runner_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EnginePassTest, DecodesGoOnBetweenTheLayersOfALongPrefill) {
  const auto decoding = StartDecoding();
  const auto prompt = Submit("prompt", 90, 20);  // three passes
  runner_->Release();
  EXPECT_TRUE(prompt->AwaitDone().ok());
  EXPECT_TRUE(decoding->AwaitDone().ok());
  EXPECT_EQ(prompt->Ids(), Expected(90, 20));
  EXPECT_EQ(decoding->Ids(), Expected(18, 110));
  EXPECT_GE(runner_->passes_finished(), 2);
  EXPECT_GE(runner_->steps_beside_passes(), runner_->passes_finished() * 2);
  EXPECT_EQ(runner_->max_chunks_in_a_step(), 2) << "two sequences decode in one step again";
  ExpectNothingLeft();
}

TEST_F(EnginePassTest, NothingIsAPassWhenNothingDecodes) {
  EXPECT_TRUE(Submit("alone", 100, 5)->AwaitDone().ok());
  EXPECT_EQ(runner_->passes_begun(), 0);
}

TEST_F(EnginePassTest, APassRunsThroughOnceTheDecodesHaveEnded) {
  runner_->HoldPass();
  const auto decoding = StartDecoding();
  const auto prompt = Submit("prompt", 30, 5);
  AwaitPassInFlight();
  engine_->Cancel("decoding");
  runner_->AllowSlices(2);  // the one that is held, and all that is left
  EXPECT_TRUE(prompt->AwaitDone().ok());
  EXPECT_EQ(prompt->Ids(), Expected(30, 5));
}

TEST_F(EnginePassTest, ACancelledPrefillIsAbandonedAndItsBlocksReturn) {
  runner_->HoldPass();
  const auto decoding = StartDecoding();
  const auto cancelled = Submit("cancelled", 32, 5);
  AwaitPassInFlight();
  const auto next = Submit("next", 31, 5);
  engine_->Cancel("cancelled");
  runner_->AllowSlices(INT64_MAX);
  EXPECT_EQ(cancelled->AwaitDone().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(next->AwaitDone().ok());
  EXPECT_TRUE(decoding->AwaitDone().ok());
  EXPECT_EQ(runner_->passes_abandoned(), 1);
  EXPECT_EQ(next->Ids(), Expected(31, 5));
  EXPECT_EQ(decoding->Ids(), Expected(18, 110));
  ExpectNothingLeft();
}

TEST_F(EnginePassTest, APassGoesOnForThoseWhoAreLeft) {
  runner_->HoldPass();
  const auto decoding = StartDecoding();
  const auto cancelled = Submit("cancelled", 15, 5);
  const auto prompt = Submit("prompt", 14, 5);
  AwaitPassInFlight();
  engine_->Cancel("cancelled");
  runner_->AllowSlices(INT64_MAX);
  EXPECT_EQ(cancelled->AwaitDone().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(prompt->AwaitDone().ok());
  EXPECT_TRUE(decoding->AwaitDone().ok());
  EXPECT_EQ(runner_->passes_abandoned(), 0);
  EXPECT_EQ(prompt->Ids(), Expected(14, 5));
  EXPECT_EQ(decoding->Ids(), Expected(18, 110));
  ExpectNothingLeft();
}

TEST_F(EnginePassTest, ADeadlineEndsAPrefillInFlight) {
  runner_->HoldPass();
  const auto decoding = StartDecoding();
  const auto late = Submit("late", 32, 5, absl::Now() + absl::Milliseconds(300));
  AwaitPassInFlight();
  absl::SleepFor(absl::Milliseconds(320));
  runner_->AllowSlices(INT64_MAX);
  EXPECT_EQ(late->AwaitDone().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(decoding->AwaitDone().ok());
  EXPECT_EQ(runner_->passes_abandoned(), 1);
  ExpectNothingLeft();
}

TEST_F(EnginePassTest, DecodingTakesTheBlocksOfAPassAndItsPrefillRunsAgain) {
  options_.kv_block_tokens = 2;
  options_.num_kv_blocks = 28;
  Start();
  runner_->HoldPass();
  const auto decoding = StartDecoding(/*max_tokens=*/38);  // all blocks in the end
  const auto prompt = Submit("prompt", 30, 5);             // all but one of those that are free
  AwaitPassInFlight();
  runner_->AllowSlices(INT64_MAX);
  EXPECT_TRUE(decoding->AwaitDone().ok());
  EXPECT_TRUE(prompt->AwaitDone().ok());
  EXPECT_GE(runner_->passes_abandoned(), 1);
  EXPECT_EQ(decoding->Ids(), Expected(18, 38));
  EXPECT_EQ(prompt->Ids(), Expected(30, 5));
  ExpectNothingLeft();
}

TEST_F(EnginePassTest, AFailureInAPassEndsEverythingWithUnavailable) {
  runner_->HoldPass();
  const auto decoding = StartDecoding();
  const auto prompt = Submit("prompt", 32, 5);
  AwaitPassInFlight();
  runner_->FailNextSlice();
  runner_->AllowSlices(INT64_MAX);
  for (const auto& sink : {decoding, prompt}) {
    EXPECT_EQ(sink->AwaitDone().code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_TRUE(engine_->Snapshot().failed);
  ExpectNothingLeft();
}

TEST_F(EnginePassTest, DestructionInThePassTellsEveryRequest) {
  runner_->HoldPass();
  const auto decoding = StartDecoding();
  const auto prompt = Submit("prompt", 32, 5);
  AwaitPassInFlight();
  std::thread release([this] {
    absl::SleepFor(absl::Milliseconds(50));
    runner_->AllowSlices(INT64_MAX);
  });
  engine_.reset();
  release.join();
  for (const auto& sink : {decoding, prompt}) {
    ASSERT_TRUE(sink->done());
    const absl::Status status = sink->AwaitDone();
    EXPECT_TRUE(status.ok() || absl::IsUnavailable(status)) << status;
  }
}

// Many prompts beside decodes, with little memory, so that passes are abandoned for it too.
TEST_F(EnginePassTest, EveryOutputIsRightAndTheBillsAddUp) {
  options_.num_kv_blocks = 14;
  Start();
  runner_->SetPrefillTime(std::chrono::microseconds(50));
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 60; ++i) {
    sinks.push_back(Submit(absl::StrCat(i), 1 + i * 17 % 90, 1 + i * 5 % 30, absl::InfiniteFuture(),
                           1 + i % 3));
  }
  double hits = 0;
  for (int i = 0; i < 60; ++i) {
    EXPECT_TRUE(sinks[i]->AwaitDone().ok());
    EXPECT_EQ(sinks[i]->Ids(), Expected(1 + i * 17 % 90, 1 + i * 5 % 30)) << "request " << i;
    hits += sinks[i]->usage().experts.hits;
  }
  EXPECT_GT(runner_->passes_finished(), 5);
  EXPECT_NEAR(hits, runner_->total_hits(), 1e-6);
  ExpectNothingLeft();
}

}  // namespace
}  // namespace moed::engine
