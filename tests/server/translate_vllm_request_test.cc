#include "server/translate_vllm_request.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include "tests/server/served_model_for_test.h"

namespace moed::server {
namespace {

vllm::grpc::engine::GenerateRequest Wire(const std::string& text) {
  vllm::grpc::engine::GenerateRequest request;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &request)) << text;
  return request;
}

class TranslateVllmRequestTest : public testing::Test {
 protected:
  TranslateVllmRequestTest() {
    // What a checkpoint says must not leak into requests of gateways, which apply it themselves.
    model_->generation.temperature = 0.7f;
    model_->generation.top_p = 0.5f;
    model_->generation.max_new_tokens = 2;
  }
  absl::StatusOr<engine::Request> Translate(const std::string& text) {
    return ToEngineRequest(Wire(text), *model_);
  }
  std::unique_ptr<ServedModel> model_ = TextModel();
};

TEST_F(TranslateVllmRequestTest, LeftOutFieldsAreNeutral) {
  const auto request = Translate("tokenized { input_ids: [ 1, 2, 3 ] }");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->prompt, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(request->sampling.temperature, 1);
  EXPECT_EQ(request->sampling.top_p, 1);
  EXPECT_EQ(request->sampling.repetition_penalty, 1);
  EXPECT_EQ(request->n, 1);
  EXPECT_EQ(request->max_tokens, 61);  // the rest of the context of 64
  EXPECT_FALSE(request->detokenize);
}

TEST_F(TranslateVllmRequestTest, CopiesEveryField) {
  const auto request = Translate(R"pb(
    request_id: "r-1"
    tokenized {
      input_ids: [ 1, 2, 3, 4 ]
      original_text: "not read"
    }
    sampling_params {
      temperature: 0
      top_p: 0.9
      top_k: 7
      min_p: 0.1
      frequency_penalty: 0.4
      presence_penalty: 0.3
      repetition_penalty: 1.2
      max_tokens: 10
      min_tokens: 2
      stop: "END"
      stop_token_ids: 9
      skip_special_tokens: true
      ignore_eos: true
      n: 3
      logprobs: 2
      prompt_logprobs: 4
      seed: 11
      include_stop_str_in_output: true
      logit_bias { key: 5 value: -1 }
      truncate_prompt_tokens: 2
    }
  )pb");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->id, "r-1");
  EXPECT_EQ(request->prompt, (std::vector<int32_t>{3, 4}));
  EXPECT_EQ(request->sampling.temperature, 0);
  EXPECT_FLOAT_EQ(request->sampling.top_p, 0.9f);
  EXPECT_EQ(request->sampling.top_k, 7);
  EXPECT_FLOAT_EQ(request->sampling.min_p, 0.1f);
  EXPECT_FLOAT_EQ(request->sampling.frequency_penalty, 0.4f);
  EXPECT_FLOAT_EQ(request->sampling.presence_penalty, 0.3f);
  EXPECT_FLOAT_EQ(request->sampling.repetition_penalty, 1.2f);
  EXPECT_EQ(request->sampling.seed, 11u);
  EXPECT_EQ(request->sampling.logprobs, 2);
  EXPECT_EQ(request->prompt_logprobs, 4);
  ASSERT_EQ(request->sampling.logit_bias.size(), 1u);
  EXPECT_EQ(request->max_tokens, 10);
  EXPECT_EQ(request->min_tokens, 2);
  EXPECT_EQ(request->stop, std::vector<std::string>{"END"});
  EXPECT_EQ(request->stop_token_ids, std::vector<int32_t>{9});
  EXPECT_TRUE(request->include_stop);
  EXPECT_TRUE(request->ignore_eos);
  EXPECT_EQ(request->n, 3);
}

TEST_F(TranslateVllmRequestTest, RefusesWhatItCannotDo) {
  const std::string prompt = "tokenized { input_ids: 1 } ";
  const struct {
    std::string text;
    absl::StatusCode code;
    const char* says;
  } cases[] = {
      {"", absl::StatusCode::kInvalidArgument, "prompt"},
      {prompt + "sampling_params { regex: \"a+\" }", absl::StatusCode::kUnimplemented,
       "constrained"},
      {prompt + "mm_inputs {}", absl::StatusCode::kUnimplemented, "multimodal"},
      {prompt + "media_refs {}", absl::StatusCode::kUnimplemented, "multimodal"},
      {prompt + "kv_transfer_params_json: \"{}\"", absl::StatusCode::kUnimplemented, "KV"},
      {prompt + "data_parallel_rank: 1", absl::StatusCode::kInvalidArgument, "rank"},
      {"tokenized { input_ids: 4294967295 }", absl::StatusCode::kInvalidArgument, "vocabulary"},
      {prompt + "sampling_params { top_p: 2 }", absl::StatusCode::kInvalidArgument, "top_p"},
      {prompt + "sampling_params { logprobs: -1 }", absl::StatusCode::kInvalidArgument, "logprobs"},
      {prompt + "sampling_params { n: 4294967295 }", absl::StatusCode::kInvalidArgument, "n:"},
      {"text: \"a b\" sampling_params { truncate_prompt_tokens: 1 }",
       absl::StatusCode::kInvalidArgument, "truncate_prompt_tokens"},
  };
  for (const auto& [text, code, says] : cases) {
    const absl::Status status = Translate(text).status();
    EXPECT_EQ(status.code(), code) << text << ": " << status;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(says));
  }
}

}  // namespace
}  // namespace moed::server
