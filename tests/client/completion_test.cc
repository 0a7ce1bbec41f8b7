#include "client/completion.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/client/fake_server.h"

namespace moed::client {
namespace {

using nlohmann::json;

TEST(CompletionTest, JoinsDeltasIntoOneObject) {
  Completion completion;
  completion.Add(DeltaOf(0, "Once", {5}));
  completion.Add(DeltaOf(0, " upon", {6}));
  completion.Add(FinishedOf(1, v1::FINISH_REASON_LENGTH));
  const json result = completion.ToJson();
  EXPECT_EQ(result["token_ids"], json({5, 6}));
  EXPECT_EQ(result["text"], "Once upon");
  EXPECT_EQ(result["finish_reason"], "length");
  EXPECT_EQ(result["request_id"], "r1");
  EXPECT_EQ(result["usage"]["prompt_tokens"], 3);
  EXPECT_EQ(result["usage"]["completion_tokens"], 2);
  EXPECT_EQ(result["logprobs"], json::array());
  EXPECT_EQ(
      result["experts"],
      json({{"hits", 6.0}, {"misses", 2.0}, {"bytes_paged", 2048.0}, {"stall_seconds", 0.5}}));
  EXPECT_FALSE(result.contains("completions"));
}

TEST(CompletionTest, GivesLogprobsOfEachTokenWithItsAlternatives) {
  v1::GenerateResponse response = DeltaOf(0, "a", {5});
  v1::Token* token = response.mutable_delta()->mutable_tokens(0);
  token->set_logprob(-0.5f);
  v1::TokenLogprob* top = token->add_top();
  top->set_id(9);
  top->set_logprob(-0.25f);
  Completion completion;
  completion.Add(response);
  EXPECT_EQ(completion.ToJson()["logprobs"],
            json::parse(R"([{"id":5,"logprob":-0.5,"top":[{"id":9,"logprob":-0.25}]}])"));
}

TEST(CompletionTest, ThePromptsFirstTokenHasNoLogprob) {
  v1::GenerateResponse response;
  response.mutable_prompt_logprobs()->add_tokens()->set_id(7);
  v1::PromptToken* second = response.mutable_prompt_logprobs()->add_tokens();
  second->set_id(8);
  second->set_logprob(-2);
  Completion completion;
  completion.Add(response);
  EXPECT_EQ(completion.ToJson()["prompt_logprobs"],
            json::parse(R"([{"id":7,"logprob":null,"top":[]},{"id":8,"logprob":-2.0,"top":[]}])"));
}

TEST(CompletionTest, KeepsTheSequencesOfOnePromptApart) {
  Completion completion;
  completion.Add(DeltaOf(1, "b", {2}));
  completion.Add(DeltaOf(0, "a", {1}));
  completion.Add(FinishedOf(2, v1::FINISH_REASON_STOP));
  const json result = completion.ToJson();
  EXPECT_EQ(result["text"], "a");
  ASSERT_EQ(result["completions"].size(), 2u);
  EXPECT_EQ(result["completions"][1]["text"], "b");
  EXPECT_EQ(result["completions"][1]["finish_reason"], "stop");
}

TEST(CompletionTest, NoEventsAreStillAnObject) {
  const json result = Completion().ToJson();
  EXPECT_EQ(result["token_ids"], json::array());
  EXPECT_EQ(result["text"], "");
}

TEST(CompletionTest, SummarizesForPeople) {
  Completion completion;
  completion.Add(DeltaOf(0, "ab", {1, 2}));
  completion.Add(FinishedOf(1, v1::FINISH_REASON_STOP));
  EXPECT_EQ(completion.Summary(0.75),
            "3 + 2 tokens, first after 0.250 s, then 2.0 tokens/s; experts: 75.0 % hits, 2.05 kB "
            "paged, 0.500 s stalled");
}

}  // namespace
}  // namespace moed::client
