#include "runtime/engine/submission_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/runtime/engine/recording_sink.h"

namespace moed::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr std::chrono::milliseconds kNoWait{0};

std::unique_ptr<RequestState> Waiting(int prompt_tokens, std::string id = "") {
  Request request = TestRequest(std::vector<int32_t>(prompt_tokens, 1), 1, {});
  request.id = std::move(id);
  return std::make_unique<RequestState>(std::move(request), std::vector<int32_t>{}, 1000, nullptr);
}

TEST(SubmissionQueueTest, HandsOverEverythingOnceAndInOrder) {
  SubmissionQueue queue(10, 100);
  ASSERT_TRUE(queue.Push(Waiting(3, "a")).ok());
  ASSERT_TRUE(queue.Push(Waiting(4, "b")).ok());
  queue.Cancel("b");
  queue.Cancel("b");
  queue.StopMatched(7);
  EngineMessages messages;
  queue.Take(kNoWait, &messages);
  ASSERT_EQ(messages.requests.size(), 2u);
  EXPECT_EQ(messages.requests[0]->id, "a");
  EXPECT_EQ(messages.requests[1]->id, "b");
  EXPECT_THAT(messages.cancelled, UnorderedElementsAre("b"));
  EXPECT_THAT(messages.stopped, ElementsAre(7));
  queue.Take(kNoWait, &messages);
  EXPECT_THAT(messages.requests, IsEmpty());
  EXPECT_THAT(messages.cancelled, IsEmpty());
  EXPECT_THAT(messages.stopped, IsEmpty());
}

TEST(SubmissionQueueTest, IgnoresCancelsOfUnknownIds) {
  SubmissionQueue queue(10, 100);
  queue.Cancel("nobody");
  EngineMessages messages;
  queue.Take(kNoWait, &messages);
  EXPECT_THAT(messages.cancelled, IsEmpty());
}

TEST(SubmissionQueueTest, ACancelDoesNotOutliveItsRequest) {
  SubmissionQueue queue(10, 100);
  ASSERT_TRUE(queue.Push(Waiting(1, "a")).ok());
  EngineMessages messages;
  queue.Take(kNoWait, &messages);
  queue.Cancel("a");
  queue.ReleaseId("a");
  ASSERT_TRUE(queue.Push(Waiting(1, "a")).ok());
  queue.Take(kNoWait, &messages);
  EXPECT_EQ(messages.requests.size(), 1u);
  EXPECT_THAT(messages.cancelled, IsEmpty());
}

TEST(SubmissionQueueTest, StaysFullWhileTheEngineHoldsUnstartedRequests) {
  SubmissionQueue queue(2, 100);
  ASSERT_TRUE(queue.Push(Waiting(1)).ok());
  ASSERT_TRUE(queue.Push(Waiting(1)).ok());
  EngineMessages messages;
  queue.Take(kNoWait, &messages);
  EXPECT_EQ(queue.Push(Waiting(1)).code(), absl::StatusCode::kResourceExhausted);
  queue.Leave(*messages.requests[0]);
  EXPECT_TRUE(queue.Push(Waiting(1)).ok());
}

TEST(SubmissionQueueTest, APromptBeyondTheTokenLimitMayWaitAlone) {
  SubmissionQueue queue(10, 5);
  EXPECT_TRUE(queue.Push(Waiting(50)).ok());
  EXPECT_EQ(queue.Push(Waiting(1)).code(), absl::StatusCode::kResourceExhausted);
}

TEST(SubmissionQueueTest, MakesUpIdsThatNobodyUses) {
  SubmissionQueue queue(10, 100);
  ASSERT_TRUE(queue.Push(Waiting(1, "request-1")).ok());
  ASSERT_TRUE(queue.Push(Waiting(1)).ok());
  EngineMessages messages;
  queue.Take(kNoWait, &messages);
  EXPECT_FALSE(messages.requests[1]->id.empty());
  EXPECT_NE(messages.requests[1]->id, "request-1");
}

}  // namespace
}  // namespace moed::engine
