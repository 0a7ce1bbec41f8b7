// How requests end early: cancelled or past their deadline, in every state that they can be in.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/runtime/engine/scripted_engine_test.h"

namespace moed::engine {
namespace {

class EngineCancelTest : public ScriptedEngineTest {};

TEST_F(EngineCancelTest, CancelEndsARequestInEveryState) {
  runner_->Hold();
  const auto prefilling = Submit(Named("prefilling", 100, 20));
  runner_->AwaitHeld();
  const auto queued = Submit(Named("queued", 3, 20));
  engine_->Cancel("queued");
  engine_->Cancel("prefilling");
  engine_->Cancel("unknown");
  EXPECT_FALSE(prefilling->done());
  runner_->Release();
  EXPECT_EQ(prefilling->AwaitDone().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(queued->AwaitDone().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(runner_->steps(), 1) << "a cancelled request was given another step";

  Request request = Named("decoding", 3, 100);
  request.n = 2;
  runner_->AllowSteps(5);
  const auto decoding = Submit(std::move(request));
  runner_->AwaitHeld();
  engine_->Cancel("decoding");
  runner_->Release();
  EXPECT_EQ(decoding->AwaitDone().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(decoding->Finish(0).reason, FinishReason::kCancelled);
  EXPECT_EQ(decoding->Finish(1).reason, FinishReason::kCancelled);
  EXPECT_EQ(decoding->usage().completion_tokens,
            static_cast<int64_t>(decoding->Ids(0).size() + decoding->Ids(1).size()));
  ExpectGaugesAtZero();
}

TEST_F(EngineCancelTest, CancelOfARequestThatWaitsBecauseItWasPreempted) {
  options_.num_kv_blocks = 8;
  options_.kv_block_tokens = 4;
  options_.max_model_len = 32;
  Start();
  runner_->Hold();
  const auto older = Submit(Named("older", 12, 20));
  runner_->AwaitHeld();
  const auto newer = Submit(Named("newer", 12, 20));
  // Both hold four blocks when the older one needs its fifth.
  runner_->AllowSteps(6);
  runner_->AwaitHeld();
  EXPECT_EQ(engine_->Snapshot().preemptions_total, 1);
  EXPECT_EQ(engine_->Snapshot().running, 1);
  EXPECT_EQ(engine_->Snapshot().waiting, 1);
  engine_->Cancel("newer");
  runner_->Release();
  EXPECT_TRUE(absl::IsCancelled(newer->AwaitDone()));
  EXPECT_TRUE(older->AwaitDone().ok());
  EXPECT_EQ(older->Ids().size(), 20u);
  ExpectGaugesAtZero();
}

TEST_F(EngineCancelTest, TenThousandCancelsLeaveNothingBehind) {
  options_.max_queued_requests = 20000;
  options_.max_queued_tokens = 1000000;
  Start();
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 10000; ++i) {
    Request request = Named(absl::StrCat(i), 1 + i % 60, 50);
    request.n = 1 + i % 3;
    if (i % 5 == 0) request.deadline = absl::Now() + absl::Hours(1);
    sinks.push_back(Submit(std::move(request)));
    if (i >= 20) engine_->Cancel(absl::StrCat(i - 20));
  }
  for (int i = 9980; i < 10000; ++i) engine_->Cancel(absl::StrCat(i));
  for (const auto& sink : sinks) sink->AwaitDone();
  ExpectGaugesAtZero();
  EXPECT_TRUE(engine_->Drain(absl::InfiniteFuture()));
}

TEST_F(EngineCancelTest, DeadlineEndsWorkInEveryState) {
  runner_->Hold();
  Request running = Named("running", 3, 100);
  running.deadline = absl::Now() + absl::Milliseconds(30);
  const auto running_sink = Submit(std::move(running));
  runner_->AwaitHeld();
  Request queued = Named("queued", 3, 100);
  queued.deadline = absl::Now() + absl::Milliseconds(30);
  const auto queued_sink = Submit(std::move(queued));
  Request late = Named("late", 3, 100);
  late.deadline = absl::InfinitePast();
  const auto late_sink = Submit(std::move(late));
  const auto other = Submit(Named("other", 3, 5));
  absl::SleepFor(absl::Milliseconds(60));
  runner_->Release();
  for (const auto& sink : {running_sink, queued_sink, late_sink}) {
    EXPECT_EQ(sink->AwaitDone().code(), absl::StatusCode::kDeadlineExceeded);
  }
  EXPECT_LE(running_sink->Ids().size(), 1u);
  EXPECT_TRUE(queued_sink->Ids().empty());
  EXPECT_TRUE(other->AwaitDone().ok());
  EXPECT_EQ(engine_->Snapshot().finished_total[kFailedSequence], 3);
}

}  // namespace
}  // namespace moed::engine
