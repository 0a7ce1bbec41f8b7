// What an engine takes in and refuses, what its thread does between steps, and how it stops.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/runtime/engine/scripted_engine_test.h"

namespace moed::engine {
namespace {

using ::testing::HasSubstr;

class EngineLifecycleTest : public ScriptedEngineTest {};

TEST_F(EngineLifecycleTest, PostedTasksRunInOrderOnOneThreadBetweenSteps) {
  runner_->Hold();
  const auto running = Submit(Named("running", 10, 50));
  std::vector<int> order;
  std::vector<std::thread::id> threads;
  for (int i = 0; i < 20; ++i) {
    engine_->Post([&, i] {
      order.push_back(i);
      threads.push_back(std::this_thread::get_id());
    });
  }
  runner_->Release();
  running->AwaitDone();
  engine_.reset();  // by now at the latest
  ASSERT_EQ(order.size(), 20u);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(order[i], i);
    EXPECT_EQ(threads[i], threads[0]);
    EXPECT_NE(threads[i], std::this_thread::get_id());
  }
}

TEST_F(EngineLifecycleTest, SettlesBeforeTasksAndWhenNoStepFollows) {
  runner_->AllowSteps(5);
  const auto running = Submit(Named("running", 10, 50));
  runner_->AwaitHeld();
  EXPECT_LT(runner_->settled_steps(), 5) << "settled between steps that follow one another";
  int64_t steps = -1;
  int64_t settled_steps = -1;
  engine_->Post([&] {
    steps = runner_->steps();
    settled_steps = runner_->settled_steps();
  });
  runner_->Release();
  running->AwaitDone();
  EXPECT_EQ(runner_->settled_steps(), runner_->steps());
  engine_.reset();
  EXPECT_GE(steps, 5);
  EXPECT_EQ(settled_steps, steps);
}

TEST_F(EngineLifecycleTest, RefusesWhatTheQueueCannotHold) {
  options_.max_queued_requests = 3;
  options_.max_queued_tokens = 20;
  options_.max_num_seqs = 1;
  Start();
  runner_->Hold();
  const auto running = Submit(Named("running", 10, 2));
  runner_->AwaitHeld();
  const auto first = Submit(Named("first", 10, 2));
  EXPECT_EQ(engine_->Submit(Named("no sink", 11, 2)).code(), absl::StatusCode::kInvalidArgument);
  const auto refused = std::make_shared<RecordingSink>();
  Request too_many_tokens = Named("too many tokens", 11, 2);
  too_many_tokens.sink = refused;
  const absl::Status tokens = engine_->Submit(std::move(too_many_tokens));
  EXPECT_EQ(tokens.code(), absl::StatusCode::kResourceExhausted) << tokens;
  EXPECT_THAT(std::string(tokens.message()), HasSubstr("max-queued-tokens"));
  const auto second = Submit(Named("second", 2, 2));
  const auto third = Submit(Named("third", 2, 2));
  EXPECT_EQ(engine_->Snapshot().waiting, 3);
  EXPECT_EQ(engine_->Snapshot().waiting_tokens, 14);
  Request too_many = Named("too many", 1, 2);
  too_many.sink = refused;
  const absl::Status requests = engine_->Submit(std::move(too_many));
  EXPECT_EQ(requests.code(), absl::StatusCode::kResourceExhausted) << requests;
  EXPECT_THAT(std::string(requests.message()), HasSubstr("max-queued-requests"));
  runner_->Release();
  for (const auto& sink : {running, first, second, third}) EXPECT_TRUE(sink->AwaitDone().ok());
  EXPECT_FALSE(refused->done());
  ExpectGaugesAtZero();
}

TEST_F(EngineLifecycleTest, AnIdIsInUseUntilItsRequestIsDone) {
  runner_->Hold();
  const auto sink = Submit(Named("id", 3, 2));
  Request again = Named("id", 3, 2);
  again.sink = std::make_shared<RecordingSink>();
  EXPECT_EQ(engine_->Submit(again).code(), absl::StatusCode::kAlreadyExists);
  runner_->Release();
  EXPECT_TRUE(sink->AwaitDone().ok());
  EXPECT_TRUE(Submit(Named("id", 3, 2))->AwaitDone().ok());
}

TEST_F(EngineLifecycleTest, ServesManySubmittersAtOnce) {
  std::vector<std::thread> submitters;
  for (int t = 0; t < 4; ++t) {
    submitters.emplace_back([this, t] {
      for (int i = 0; i < 100; ++i) {
        const std::string id = absl::StrCat(t, "-", i);
        const auto sink = Submit(Named(id, 1 + i % 30, 1 + i % 10));
        if (i % 3 == 0) engine_->Cancel(id);
        engine_->Snapshot();
        const absl::Status status = sink->AwaitDone();
        EXPECT_TRUE(status.ok() || (i % 3 == 0 && absl::IsCancelled(status))) << status;
      }
    });
  }
  for (std::thread& submitter : submitters) submitter.join();
  ExpectGaugesAtZero();
}

TEST_F(EngineLifecycleTest, DrainFinishesWhatItAcceptedAndRefusesMore) {
  runner_->Hold();
  const auto sink = Submit(Named("accepted", 3, 20));
  runner_->AwaitHeld();
  EXPECT_FALSE(engine_->Drain(absl::Now() + absl::Milliseconds(10)));
  Request late = Named("late", 3, 20);
  late.sink = std::make_shared<RecordingSink>();
  EXPECT_EQ(engine_->Submit(std::move(late)).code(), absl::StatusCode::kUnavailable);
  runner_->Release();
  EXPECT_TRUE(engine_->Drain(absl::InfiniteFuture()));
  EXPECT_TRUE(sink->done());
  EXPECT_TRUE(sink->AwaitDone().ok());
}

TEST_F(EngineLifecycleTest, DestructionTellsEveryOpenRequest) {
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 50; ++i) sinks.push_back(Submit(Named(absl::StrCat(i), 20, 100)));
  engine_.reset();
  for (const auto& sink : sinks) {
    ASSERT_TRUE(sink->done());
    const absl::Status status = sink->AwaitDone();
    EXPECT_TRUE(status.ok() || absl::IsUnavailable(status)) << status;
  }
}

}  // namespace
}  // namespace moed::engine
