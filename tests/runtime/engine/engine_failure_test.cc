// What requests are told when logits are invalid, when the runner fails, and when it hangs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/runtime/engine/scripted_engine_test.h"

namespace moed::engine {
namespace {

using ::testing::HasSubstr;

class EngineFailureTest : public ScriptedEngineTest {};

TEST_F(EngineFailureTest, InvalidLogitsEndTheirRequestAlone) {
  Request poisoned = Named("poisoned", 3, 20);
  poisoned.prompt.back() = kPoison;
  poisoned.n = 3;
  const auto other = Submit(Named("other", 3, 50));
  const auto sink = Submit(std::move(poisoned));
  EXPECT_EQ(sink->AwaitDone().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(other->AwaitDone().ok());
  EXPECT_EQ(other->Ids().size(), 50u);
  EXPECT_EQ(engine_->Snapshot().finished_total[kFailedSequence], 3);
  ExpectGaugesAtZero();
}

// The first of the n sequences turns invalid while the others share the full blocks of its prompt.
TEST_F(EngineFailureTest, InvalidLogitsEndAllThatShareTheirBlocks) {
  const auto hash = ScriptedRunner::HashOfContext(options_.vocab_size);
  engine_.reset();
  runner_ = std::make_unique<ScriptedRunner>(options_, [hash](const auto& context) {
    return context.front() == 30 && context.size() == 44 ? -1 : hash(context);
  });
  engine_ = Engine::Create(options_, runner_.get(), nullptr);
  const std::vector<int32_t> prompt(40, 30);  // two full blocks, and half of one
  Request poisoned = TestRequest(prompt, 20, {});
  poisoned.n = 3;
  const auto sink = Submit(std::move(poisoned));
  EXPECT_EQ(sink->AwaitDone().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(engine_->Snapshot().finished_total[kFailedSequence], 3);
  ExpectGaugesAtZero();
  // The same prompt is computed anew: nothing of it was kept.
  const double hits = runner_->total_hits();
  const auto again = Submit(TestRequest(prompt, 3, {}));
  EXPECT_TRUE(again->AwaitDone().ok());
  EXPECT_EQ(runner_->total_hits() - hits, 40 + 2);
  std::vector<int32_t> context = prompt;
  for (int32_t token : again->Ids()) {
    EXPECT_EQ(token, hash(context));
    context.push_back(token);
  }
}

TEST_F(EngineFailureTest, AFailedRunnerEndsEverythingWithUnavailable) {
  runner_->Hold();
  const auto running = Submit(Named("running", 3, 50));
  runner_->AwaitHeld();
  const auto queued = Submit(Named("queued", 3, 50));
  EXPECT_FALSE(engine_->Snapshot().failed);
  runner_->FailNextStep();
  runner_->Release();
  for (const auto& sink : {running, queued}) {
    const absl::Status status = sink->AwaitDone();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("the device is gone"));
  }
  EXPECT_TRUE(engine_->Snapshot().failed);
  Request late = Named("late", 3, 20);
  late.sink = std::make_shared<RecordingSink>();
  EXPECT_EQ(engine_->Submit(std::move(late)).code(), absl::StatusCode::kUnavailable);
  ExpectGaugesAtZero();
}

TEST_F(EngineFailureTest, ARunnerThatCannotSettleHasFailed) {
  runner_->Hold();
  const auto last = Submit(Named("last", 3, 5));
  runner_->AwaitHeld();
  runner_->FailSettle();
  runner_->Release();
  EXPECT_TRUE(last->AwaitDone().ok()) << "its tokens were there before";
  Request late = Named("late", 3, 20);
  late.sink = std::make_shared<RecordingSink>();
  const absl::Status status = engine_->Submit(std::move(late));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the trace is wrong"));
}

TEST_F(EngineFailureTest, ShowsProgressWhileIdleAndNoneWhileARunnerHangs) {
  const absl::Time started = engine_->Snapshot().last_progress;
  while (engine_->Snapshot().last_progress == started) absl::SleepFor(absl::Milliseconds(5));
  runner_->Hold();
  const auto sink = Submit(Named("hangs", 3, 2));
  runner_->AwaitHeld();
  const absl::Time held = engine_->Snapshot().last_progress;
  absl::SleepFor(absl::Milliseconds(600));
  EXPECT_EQ(engine_->Snapshot().last_progress, held);
  EXPECT_EQ(engine_->Snapshot().running, 1);
  runner_->Release();
  sink->AwaitDone();
}

TEST_F(EngineFailureTest, ProgressChangesWhileIdleAndStandsStillWhileARunnerHangs) {
  const int64_t before = engine_->progress();
  while (engine_->progress() == before) absl::SleepFor(absl::Milliseconds(5));
  runner_->Hold();
  const auto sink = Submit(Named("hangs", 3, 2));
  runner_->AwaitHeld();
  const int64_t held = engine_->progress();
  absl::SleepFor(absl::Milliseconds(300));
  EXPECT_EQ(engine_->progress(), held);
  runner_->Release();
  sink->AwaitDone();
}

TEST_F(EngineFailureTest, AbandonEndsEveryRequestWhileTheRunnerHangs) {
  options_.max_num_seqs = 1;
  Start();
  runner_->Hold();
  const auto running = Submit(Named("running", 3, 50));
  runner_->AwaitHeld();
  const auto queued = Submit(Named("queued", 3, 50));
  engine_->Abandon(absl::UnavailableError("it hangs"));
  for (const auto& sink : {running, queued}) {
    EXPECT_EQ(sink->AwaitDone(), absl::UnavailableError("it hangs"));
  }
  EXPECT_TRUE(engine_->Drain(absl::InfiniteFuture()));
  EXPECT_TRUE(engine_->Snapshot().failed);
  Request late = Named("late", 3, 20);
  late.sink = std::make_shared<RecordingSink>();
  EXPECT_EQ(engine_->Submit(std::move(late)).code(), absl::StatusCode::kUnavailable);
  engine_->Abandon(absl::UnavailableError("again"));
  // It wakes, and goes on for nobody: the sinks would complain.
  runner_->Release();
  engine_.reset();
}

TEST_F(EngineFailureTest, AbandonRacesWithARunningEngine) {
  for (int round = 0; round < 50; ++round) {
    Start();
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    for (int i = 0; i < 20; ++i) sinks.push_back(Submit(Named(absl::StrCat(i), 20, 3 + i)));
    engine_->Abandon(absl::UnavailableError("it seemed to hang"));
    for (const auto& sink : sinks) {
      const absl::Status status = sink->AwaitDone();
      EXPECT_TRUE(status.ok() || absl::IsUnavailable(status)) << status;
    }
    EXPECT_TRUE(engine_->Drain(absl::InfiniteFuture()));
  }
}

}  // namespace
}  // namespace moed::engine
