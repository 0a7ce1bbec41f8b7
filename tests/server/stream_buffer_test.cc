#include "server/stream_buffer.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <utility>

namespace moed::server {
namespace {

engine::Delta MakeDelta(int index, int32_t token, std::string text) {
  return {.index = index, .tokens = {{.id = token}}, .text = std::move(text)};
}

TEST(StreamBufferTest, GivesEachDeltaItsMessageWhileTheClientKeepsUp) {
  StreamBuffer buffer({});
  v1::GenerateResponse message;
  EXPECT_TRUE(buffer.empty());
  EXPECT_FALSE(buffer.Take(&message));
  ASSERT_TRUE(buffer.Push(MakeDelta(0, 5, "a")));
  ASSERT_TRUE(buffer.Push(MakeDelta(0, 6, "b")));
  ASSERT_TRUE(buffer.Take(&message));
  EXPECT_EQ(message.delta().text(), "a");
  ASSERT_TRUE(buffer.Take(&message));
  EXPECT_EQ(message.delta().text(), "b");
  ASSERT_EQ(message.delta().tokens_size(), 1);
  EXPECT_EQ(message.delta().tokens(0).id(), 6);
  EXPECT_FALSE(message.delta().tokens(0).has_logprob());
  EXPECT_TRUE(buffer.empty());
}

TEST(StreamBufferTest, SendsPromptLogprobsFirstAndUsageLast) {
  StreamBuffer buffer({.with_logprobs = true, .first_prompt_token = 9});
  buffer.PushPromptLogprobs({{{.id = 7, .logprob = -1}, {.id = 8, .logprob = -0.5}}});
  buffer.Push({.index = 0, .tokens = {{.id = 1, .logprob = -2, .top = {{1, -2}}}}});
  buffer.PushSequenceFinish({.index = 0, .reason = engine::FinishReason::kLength});
  engine::Usage usage;
  usage.completion_tokens = 1;
  buffer.PushFinished(usage);
  v1::GenerateResponse message;
  ASSERT_TRUE(buffer.Take(&message));
  ASSERT_EQ(message.prompt_logprobs().tokens_size(), 2);
  EXPECT_EQ(message.prompt_logprobs().tokens(0).id(), 9);
  EXPECT_FALSE(message.prompt_logprobs().tokens(0).has_logprob());
  EXPECT_FLOAT_EQ(message.prompt_logprobs().tokens(1).logprob(), -1);
  EXPECT_EQ(message.prompt_logprobs().tokens(1).top(0).id(), 8);
  ASSERT_TRUE(buffer.Take(&message));
  EXPECT_FLOAT_EQ(message.delta().tokens(0).logprob(), -2);
  EXPECT_EQ(message.delta().tokens(0).top_size(), 1);
  ASSERT_TRUE(buffer.Take(&message));
  EXPECT_EQ(message.finished().sequences(0).reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(message.finished().usage().completion_tokens(), 1);
  EXPECT_FALSE(buffer.Take(&message));
}

// Whatever a slow client misses in messages, it must not miss in tokens, text or their order.
TEST(StreamBufferTest, JoiningLosesNothing) {
  std::mt19937 random(1);
  StreamBuffer buffer({.max_messages = 4});
  std::map<int, std::pair<std::string, std::vector<int32_t>>> pushed, taken;
  v1::GenerateResponse message;
  const auto take = [&] {
    if (!buffer.Take(&message)) return false;
    auto& [text, tokens] = taken[message.delta().index()];
    text += message.delta().text();
    for (const v1::Token& token : message.delta().tokens()) tokens.push_back(token.id());
    return true;
  };
  for (int i = 0; i < 20000; ++i) {
    if (random() % 4 == 0) {
      take();
      continue;
    }
    const int index = static_cast<int>(random() % 3);
    const std::string text(1, static_cast<char>('a' + random() % 26));
    ASSERT_TRUE(buffer.Push(MakeDelta(index, i, text)));
    pushed[index].first += text;
    pushed[index].second.push_back(i);
  }
  int messages_left = 0;
  while (take()) ++messages_left;
  EXPECT_EQ(taken, pushed);
  EXPECT_LE(messages_left, 4 + 3);
}

TEST(StreamBufferTest, RefusesPastItsLimitAndRecovers) {
  StreamBuffer buffer({.max_bytes = 1000});
  int accepted = 0;
  while (buffer.Push(MakeDelta(0, 1, std::string(50, 'x')))) ++accepted;
  EXPECT_GT(accepted, 5);
  EXPECT_LE(accepted, 20);
  v1::GenerateResponse message;
  while (buffer.Take(&message)) {
  }
  EXPECT_TRUE(buffer.Push(MakeDelta(0, 1, std::string(50, 'x'))));
}

TEST(StreamBufferTest, ClearForgetsEverything) {
  StreamBuffer buffer({.max_bytes = 100});
  buffer.Push(MakeDelta(0, 1, "text"));
  buffer.PushFinished({});
  buffer.Clear();
  EXPECT_TRUE(buffer.empty());
}

}  // namespace
}  // namespace moed::server
