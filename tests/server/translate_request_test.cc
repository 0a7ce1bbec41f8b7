#include "server/translate_request.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include "server/grpc_status.h"
#include "tests/server/served_model_for_test.h"

namespace moed::server {
namespace {

using testing::HasSubstr;

v1::GenerateRequest Wire(const std::string& text) {
  v1::GenerateRequest request;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &request)) << text;
  return request;
}

class TranslateRequestTest : public testing::Test {
 protected:
  absl::StatusOr<engine::Request> Translate(const std::string& text) {
    return ToEngineRequest(Wire(text), *model_);
  }
  std::unique_ptr<ServedModel> model_ = TextModel();
};

TEST_F(TranslateRequestTest, CopiesEveryField) {
  const auto request = Translate(R"pb(
    model: "demo"
    tokens { ids: [ 1, 2, 3 ] }
    sampling {
      temperature: 0.5
      top_k: 7
      top_p: 0.9
      min_p: 0.1
      repetition_penalty: 1.2
      presence_penalty: 0.3
      frequency_penalty: 0.4
      seed: 11
      logit_bias { key: 5 value: -1 }
      logprobs: 2
      prompt_logprobs: 3
    }
    stopping {
      max_tokens: 10
      min_tokens: 2
      stop: "END"
      stop_token_ids: 9
      ignore_eos: true
      include_stop_text: true
    }
    n: 3
    return_token_ids_only: true
    skip_special_tokens: false
    request_id: "r-1"
  )pb");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->id, "r-1");
  EXPECT_EQ(request->prompt, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_FLOAT_EQ(request->sampling.temperature, 0.5f);
  EXPECT_EQ(request->sampling.top_k, 7);
  EXPECT_FLOAT_EQ(request->sampling.top_p, 0.9f);
  EXPECT_FLOAT_EQ(request->sampling.min_p, 0.1f);
  EXPECT_FLOAT_EQ(request->sampling.repetition_penalty, 1.2f);
  EXPECT_FLOAT_EQ(request->sampling.presence_penalty, 0.3f);
  EXPECT_FLOAT_EQ(request->sampling.frequency_penalty, 0.4f);
  EXPECT_EQ(request->sampling.seed, 11u);
  ASSERT_EQ(request->sampling.logit_bias.size(), 1u);
  EXPECT_EQ(request->sampling.logit_bias[0], (std::pair<int32_t, float>(5, -1.0f)));
  EXPECT_EQ(request->sampling.logprobs, 2);
  EXPECT_EQ(request->prompt_logprobs, 3);
  EXPECT_EQ(request->max_tokens, 10);
  EXPECT_EQ(request->min_tokens, 2);
  EXPECT_EQ(request->stop, std::vector<std::string>{"END"});
  EXPECT_EQ(request->stop_token_ids, std::vector<int32_t>{9});
  EXPECT_TRUE(request->ignore_eos);
  EXPECT_TRUE(request->include_stop);
  EXPECT_EQ(request->n, 3);
  EXPECT_FALSE(request->detokenize);
  EXPECT_FALSE(request->skip_special_tokens);
}

TEST_F(TranslateRequestTest, LeftOutFieldsTakeTheModelsDefaultsThenNeutralValues) {
  model_->generation.temperature = 0.8f;
  model_->generation.top_k = 20;
  model_->generation.max_new_tokens = 12;
  const auto request = Translate("tokens { ids: 1 }");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_FLOAT_EQ(request->sampling.temperature, 0.8f);
  EXPECT_EQ(request->sampling.top_k, 20);
  EXPECT_FLOAT_EQ(request->sampling.top_p, 1.0f);
  EXPECT_FLOAT_EQ(request->sampling.repetition_penalty, 1.0f);
  EXPECT_EQ(request->sampling.logprobs, -1);
  EXPECT_EQ(request->prompt_logprobs, -1);
  EXPECT_EQ(request->max_tokens, 12);
  EXPECT_EQ(request->n, 1);
  EXPECT_TRUE(request->detokenize);
  EXPECT_TRUE(request->skip_special_tokens);
  EXPECT_FALSE(request->id.empty());
}

TEST_F(TranslateRequestTest, ZeroTemperatureIsNotAMissingOne) {
  model_->generation.temperature = 0.8f;
  const auto request = Translate("tokens { ids: 1 } sampling { temperature: 0 }");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->sampling.temperature, 0);
}

TEST_F(TranslateRequestTest, MakesUpDistinctSeedsAndIds) {
  const auto first = Translate("tokens { ids: 1 }");
  const auto second = Translate("tokens { ids: 1 }");
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(first->sampling.seed, second->sampling.seed);
  EXPECT_NE(first->id, second->id);
}

TEST_F(TranslateRequestTest, CutsMaxTokensToTheContext) {
  const auto request =
      Translate("tokens { ids: [ 1, 2, 3, 4 ] } stopping { max_tokens: 9223372036854775807 }");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->max_tokens, 60);
}

TEST_F(TranslateRequestTest, RefusesEachBadFieldByName) {
  const struct {
    const char* fields;
    const char* names;
  } bad[] = {
      {"sampling { temperature: nan }", "sampling.temperature"},
      {"sampling { temperature: -0.1 }", "sampling.temperature"},
      {"sampling { temperature: inf }", "sampling.temperature"},
      {"sampling { top_k: -2 }", "sampling.top_k"},
      {"sampling { top_p: 0 }", "sampling.top_p"},
      {"sampling { top_p: 1.1 }", "sampling.top_p"},
      {"sampling { top_p: nan }", "sampling.top_p"},
      {"sampling { min_p: -1 }", "sampling.min_p"},
      {"sampling { min_p: nan }", "sampling.min_p"},
      {"sampling { repetition_penalty: 0 }", "sampling.repetition_penalty"},
      {"sampling { repetition_penalty: nan }", "sampling.repetition_penalty"},
      {"sampling { presence_penalty: 3 }", "sampling.presence_penalty"},
      {"sampling { presence_penalty: nan }", "sampling.presence_penalty"},
      {"sampling { frequency_penalty: -inf }", "sampling.frequency_penalty"},
      {"sampling { logit_bias { key: -1 value: 1 } }", "sampling.logit_bias"},
      {"sampling { logit_bias { key: 2048 value: 1 } }", "sampling.logit_bias"},
      {"sampling { logit_bias { key: 1 value: nan } }", "sampling.logit_bias"},
      {"sampling { logprobs: -1 }", "sampling.logprobs"},
      {"sampling { logprobs: 21 }", "sampling.logprobs"},
      {"sampling { prompt_logprobs: 2147483647 }", "sampling.prompt_logprobs"},
      {"sampling { prompt_logprobs: -5 }", "sampling.prompt_logprobs"},
      {"stopping { max_tokens: 0 }", "stopping.max_tokens"},
      {"stopping { max_tokens: -9223372036854775808 }", "stopping.max_tokens"},
      {"stopping { min_tokens: -1 }", "stopping.min_tokens"},
      {"stopping { min_tokens: 9223372036854775807 }", "stopping.min_tokens"},
      {"stopping { max_tokens: 3 min_tokens: 4 }", "stopping.min_tokens"},
      {"stopping { stop: '' }", "stopping.stop"},
      {"stopping { stop_token_ids: -1 }", "stopping.stop_token_ids"},
      {"stopping { stop_token_ids: 2048 }", "stopping.stop_token_ids"},
      {"n: 0", "n:"},
      {"n: -1", "n:"},
      {"n: 2147483647", "n:"},
      {"request_id: 'a b'", "request_id"},
      {"request_id: 'a\\nb'", "request_id"},
  };
  for (const auto& [fields, names] : bad) {
    const auto request = Translate(std::string("tokens { ids: 1 } ") + fields);
    EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument) << fields;
    EXPECT_THAT(std::string(request.status().message()), HasSubstr(names)) << fields;
    EXPECT_FALSE(ToGrpcStatus(request.status()).error_details().empty()) << fields;
  }
}

TEST_F(TranslateRequestTest, RefusesOversizedLists) {
  v1::GenerateRequest many_stops = Wire("tokens { ids: 1 }");
  for (int i = 0; i < 1000; ++i) many_stops.mutable_stopping()->add_stop("x");
  EXPECT_TRUE(absl::IsInvalidArgument(ToEngineRequest(many_stops, *model_).status()));
  v1::GenerateRequest many_biases = Wire("tokens { ids: 1 }");
  for (int i = 0; i < 2000; ++i) (*many_biases.mutable_sampling()->mutable_logit_bias())[i] = 1;
  EXPECT_TRUE(absl::IsInvalidArgument(ToEngineRequest(many_biases, *model_).status()));
  v1::GenerateRequest long_id = Wire("tokens { ids: 1 }");
  long_id.set_request_id(std::string(129, 'x'));
  EXPECT_TRUE(absl::IsInvalidArgument(ToEngineRequest(long_id, *model_).status()));
}

TEST_F(TranslateRequestTest, RefusesPromptsThatCannotBe) {
  EXPECT_TRUE(absl::IsInvalidArgument(Translate("").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Translate("tokens {}").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Translate("text: ''").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Translate("tokens { ids: 2048 }").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Translate("tokens { ids: -1 }").status()));
  v1::GenerateRequest huge;
  huge.set_text(std::string(1 << 20, 'x'));
  EXPECT_TRUE(absl::IsInvalidArgument(ToEngineRequest(huge, *model_).status()));
}

TEST_F(TranslateRequestTest, SaysHowLongATooLongPromptIs) {
  v1::GenerateRequest wire;
  for (int i = 0; i < 64; ++i) wire.mutable_tokens()->add_ids(1);
  const absl::Status status = ToEngineRequest(wire, *model_).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), testing::AllOf(HasSubstr("64"), HasSubstr("63")));
  wire.mutable_tokens()->mutable_ids()->RemoveLast();
  EXPECT_TRUE(ToEngineRequest(wire, *model_).ok());
}

TEST_F(TranslateRequestTest, UnknownModelNamesTheServedOne) {
  const absl::Status status = Translate("model: 'other' tokens { ids: 1 }").status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"demo\""));
}

TEST_F(TranslateRequestTest, TextAndChatBecomeTokens) {
  const auto request = Translate("text: 'Once upon a time'");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_GT(request->prompt.size(), 2u);
  v1::ChatRequest chat;
  v1::ChatMessage* message = chat.add_messages();
  message->set_role("user");
  message->set_content("Once upon a time");
  const auto translated = ToEngineRequest(chat, *model_);
  ASSERT_TRUE(translated.ok()) << translated.status();
  EXPECT_EQ(translated->prompt, request->prompt);  // the demo's template only joins contents
}

TEST_F(TranslateRequestTest, RefusesChatsThatCannotBe) {
  v1::ChatRequest chat;
  EXPECT_TRUE(absl::IsInvalidArgument(ToEngineRequest(chat, *model_).status()));
  chat.add_messages()->set_content("no role");
  const absl::Status status = ToEngineRequest(chat, *model_).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("messages[0].role"));
}

TEST(TranslateWithoutTokenizerTest, ServesTokensAndRefusesText) {
  const auto model = DescribedModel();
  const auto tokens = ToEngineRequest(Wire("tokens { ids: 1 }"), *model);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_FALSE(tokens->detokenize);
  const char* needs_text[] = {"text: 'a'", "tokens { ids: 1 } stopping { stop: 'a' }"};
  for (const char* wire : needs_text) {
    EXPECT_TRUE(absl::IsFailedPrecondition(ToEngineRequest(Wire(wire), *model).status())) << wire;
  }
  v1::ChatRequest chat;
  chat.add_messages()->set_role("user");
  EXPECT_TRUE(absl::IsFailedPrecondition(ToEngineRequest(chat, *model).status()));
  v1::TokenizeRequest tokenize;
  tokenize.set_text("a");
  EXPECT_TRUE(absl::IsFailedPrecondition(ToTokenIds(tokenize, *model).status()));
  v1::DetokenizeRequest detokenize;
  detokenize.add_token_ids(1);
  EXPECT_TRUE(absl::IsFailedPrecondition(ToText(detokenize, *model).status()));
}

TEST_F(TranslateRequestTest, TokenizeAndDetokenizeAreInverse) {
  v1::TokenizeRequest tokenize;
  tokenize.set_text("The quick brown fox");
  const auto ids = ToTokenIds(tokenize, *model_);
  ASSERT_TRUE(ids.ok()) << ids.status();
  v1::DetokenizeRequest detokenize;
  detokenize.mutable_token_ids()->Add(ids->begin(), ids->end());
  EXPECT_EQ(*ToText(detokenize, *model_), "The quick brown fox");
  detokenize.add_token_ids(1 << 30);
  EXPECT_TRUE(absl::IsInvalidArgument(ToText(detokenize, *model_).status()));
}

}  // namespace
}  // namespace moed::server
