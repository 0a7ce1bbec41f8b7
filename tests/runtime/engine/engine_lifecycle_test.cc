// How requests end early and how the engine stops: cancel, deadline, overload, drain, failure.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/engine/engine.h"
#include "tests/runtime/engine/recording_sink.h"
#include "tests/runtime/engine/scripted_runner.h"

namespace moed::engine {
namespace {

using ::testing::HasSubstr;

constexpr int32_t kPoison = 9;  // a context that ends with it has invalid logits

class EngineLifecycleTest : public ::testing::Test {
 protected:
  void SetUp() override { Start(); }
  void Start() {
    engine_.reset();
    const auto hash = ScriptedRunner::HashOfContext(options_.vocab_size);
    runner_ = std::make_unique<ScriptedRunner>(options_, [hash](const auto& context) {
      return context.back() == kPoison ? -1 : hash(context);
    });
    engine_ = Engine::Create(options_, runner_.get(), nullptr);
  }
  std::shared_ptr<RecordingSink> Submit(Request request) {
    auto sink = std::make_shared<RecordingSink>();
    request.sink = sink;
    const absl::Status status = engine_->Submit(std::move(request));
    EXPECT_TRUE(status.ok()) << status;
    return sink;
  }
  Request Named(std::string id, int prompt_tokens, int max_tokens) {
    Request request = TestRequest(std::vector<int32_t>(prompt_tokens, 20), max_tokens, {});
    request.id = std::move(id);
    return request;
  }
  void ExpectGaugesAtZero() {
    const EngineSnapshot snapshot = engine_->Snapshot();
    EXPECT_EQ(snapshot.running, 0);
    EXPECT_EQ(snapshot.waiting, 0);
    EXPECT_EQ(snapshot.waiting_tokens, 0);
    EXPECT_EQ(snapshot.kv_blocks_used, 0);
  }

  EngineOptions options_ = TestOptions();
  std::unique_ptr<ScriptedRunner> runner_;
  std::unique_ptr<Engine> engine_;
};

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

TEST_F(EngineLifecycleTest, CancelEndsARequestInEveryState) {
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

TEST_F(EngineLifecycleTest, CancelOfARequestThatWaitsBecauseItWasPreempted) {
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

TEST_F(EngineLifecycleTest, TenThousandCancelsLeaveNothingBehind) {
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

TEST_F(EngineLifecycleTest, DeadlineEndsWorkInEveryState) {
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

TEST_F(EngineLifecycleTest, InvalidLogitsEndTheirRequestAlone) {
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
TEST_F(EngineLifecycleTest, InvalidLogitsEndAllThatShareTheirBlocks) {
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

TEST_F(EngineLifecycleTest, AFailedRunnerEndsEverythingWithUnavailable) {
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

TEST_F(EngineLifecycleTest, ARunnerThatCannotSettleHasFailed) {
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

TEST_F(EngineLifecycleTest, ShowsProgressWhileIdleAndNoneWhileARunnerHangs) {
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

TEST_F(EngineLifecycleTest, AbandonEndsEveryRequestWhileTheRunnerHangs) {
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

TEST_F(EngineLifecycleTest, AbandonRacesWithARunningEngine) {
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

TEST_F(EngineLifecycleTest, ProgressChangesWhileIdleAndStandsStillWhileARunnerHangs) {
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

}  // namespace
}  // namespace moed::engine
