#include "server/vllm_stream_buffer.h"

#include <gtest/gtest.h>

namespace moed::server {
namespace {

using Response = VllmStreamBuffer::Response;

engine::Delta MakeDelta(int index, int32_t token) {
  return {.index = index, .tokens = {{.id = token, .logprob = -1, .top = {{token, -1}}}}};
}

TEST(VllmStreamBufferTest, StreamsChunksThenTheCompleteOfTheirSequence) {
  VllmStreamBuffer buffer({.stream = true, .prompt_tokens = 3});
  EXPECT_TRUE(buffer.empty());
  ASSERT_TRUE(buffer.Push(MakeDelta(0, 7)));
  ASSERT_TRUE(buffer.Push(MakeDelta(0, 8)));
  buffer.PushSequenceFinish(
      {.index = 0, .reason = engine::FinishReason::kStop, .matched_token = 8});
  Response message;
  for (uint32_t id : {7u, 8u}) {
    ASSERT_TRUE(buffer.Take(&message));
    ASSERT_EQ(message.chunk().token_ids_size(), 1);
    EXPECT_EQ(message.chunk().token_ids(0), id);
    EXPECT_EQ(message.chunk().prompt_tokens(), 3u);
    EXPECT_EQ(message.chunk().completion_tokens(), 1u);
    EXPECT_FALSE(message.chunk().has_output_logprobs());
  }
  ASSERT_TRUE(buffer.Take(&message));
  EXPECT_EQ(message.complete().finish_reason(), "stop");
  EXPECT_EQ(message.complete().completion_tokens(), 2u);
  EXPECT_EQ(message.complete().matched_token_id(), 8u);
  EXPECT_EQ(message.complete().output_ids_size(), 0);
  EXPECT_FALSE(buffer.Take(&message));
}

TEST(VllmStreamBufferTest, GathersTokensOfEachSequenceWhenNotStreaming) {
  VllmStreamBuffer buffer({.with_logprobs = true, .n = 2});
  for (int32_t token : {1, 2, 3}) {
    ASSERT_TRUE(buffer.Push(MakeDelta(0, token)));
    ASSERT_TRUE(buffer.Push(MakeDelta(1, 10 * token)));
  }
  EXPECT_TRUE(buffer.empty());
  buffer.PushSequenceFinish(
      {.index = 1, .reason = engine::FinishReason::kLength, .matched_stop = "end"});
  Response message;
  ASSERT_TRUE(buffer.Take(&message));
  EXPECT_EQ(message.complete().index(), 1u);
  EXPECT_EQ(message.complete().finish_reason(), "length");
  EXPECT_EQ(message.complete().matched_stop_str(), "end");
  ASSERT_EQ(message.complete().output_ids_size(), 3);
  EXPECT_EQ(message.complete().output_ids(2), 30u);
  EXPECT_EQ(message.complete().output_logprobs().top_logprobs(2).token_ids(0), 30u);
  EXPECT_FALSE(buffer.Take(&message));
}

TEST(VllmStreamBufferTest, PromptLogprobsGoWithTheFirstMessageOfEachSequence) {
  VllmStreamBuffer buffer({.stream = true, .n = 2, .first_prompt_token = 5});
  buffer.PushPromptLogprobs({{{6, -2}, {9, -1}}});
  for (int index : {0, 1, 0}) ASSERT_TRUE(buffer.Push(MakeDelta(index, 1)));
  Response message;
  for (bool first : {true, true, false}) {
    ASSERT_TRUE(buffer.Take(&message));
    ASSERT_EQ(message.chunk().has_input_logprobs(), first);
    if (!first) continue;
    const auto& logprobs = message.chunk().input_logprobs();
    ASSERT_EQ(logprobs.token_ids_size(), 2);
    EXPECT_EQ(logprobs.token_ids(0), 5u);
    EXPECT_FALSE(logprobs.token_logprobs(0).has_value());
    EXPECT_EQ(logprobs.token_logprobs(1).value(), -2);
    EXPECT_EQ(logprobs.top_logprobs(1).token_ids(0), 9u);
  }
}

TEST(VllmStreamBufferTest, RefusesBeyondItsLimits) {
  VllmStreamBuffer gathering({.max_gathered = 4});
  EXPECT_TRUE(gathering.Push(MakeDelta(0, 1)));
  EXPECT_TRUE(gathering.Push(MakeDelta(0, 1)));
  EXPECT_FALSE(gathering.Push(MakeDelta(0, 1)));
  VllmStreamBuffer streaming({.stream = true, .max_bytes = 10});
  EXPECT_FALSE(streaming.Push(MakeDelta(0, 1)));
}

}  // namespace
}  // namespace moed::server
