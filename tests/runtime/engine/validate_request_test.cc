#include "runtime/engine/validate_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <string>

#include "tests/runtime/engine/recording_sink.h"

namespace moed::engine {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kMaxSequenceTokens = 128;

Request Valid() { return TestRequest({10, 11}, 5, std::make_shared<RecordingSink>()); }

absl::Status Validate(const Request& request, bool has_tokenizer = true) {
  return ValidateRequest(request, TestOptions(), kMaxSequenceTokens, has_tokenizer);
}

TEST(ValidateRequestTest, NamesTheFieldThatIsWrong) {
  const struct {
    const char* named;
    std::function<void(Request&)> spoil;
  } cases[] = {
      {"no tokens", [](Request& r) { r.prompt.clear(); }},
      {"at most 127", [](Request& r) { r.prompt.assign(128, 10); }},
      {"id of the prompt", [](Request& r) { r.prompt[1] = 2048; }},
      {"id of the prompt", [](Request& r) { r.prompt[1] = -1; }},
      {"n is 0", [](Request& r) { r.n = 0; }},
      {"n is -1", [](Request& r) { r.n = -1; }},
      {"n is 2147483647", [](Request& r) { r.n = std::numeric_limits<int>::max(); }},
      {"max_tokens", [](Request& r) { r.max_tokens = -1; }},
      {"min_tokens", [](Request& r) { r.min_tokens = -1; }},
      {"min_tokens", [](Request& r) { r.min_tokens = 6; }},
      {"stop_token_ids", [](Request& r) { r.stop_token_ids = {2048}; }},
      {"number of stop strings", [](Request& r) { r.stop.assign(17, "x"); }},
      {"length of a stop string", [](Request& r) { r.stop = {""}; }},
      {"length of a stop string", [](Request& r) { r.stop = {std::string(1025, 'x')}; }},
      {"prompt_logprobs", [](Request& r) { r.prompt_logprobs = 21; }},
      {"prompt_logprobs", [](Request& r) { r.prompt_logprobs = -2; }},
      {"temperature", [](Request& r) { r.sampling.temperature = std::nanf(""); }},
      {"sink", [](Request& r) { r.sink = nullptr; }},
  };
  for (const auto& c : cases) {
    Request request = Valid();
    c.spoil(request);
    const absl::Status status = Validate(request);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.named;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.named));
  }
}

TEST(ValidateRequestTest, AcceptsTheLimitsThemselves) {
  Request request = Valid();
  request.prompt.assign(127, 2047);
  request.n = 128;
  request.max_tokens = std::numeric_limits<int64_t>::max();
  request.min_tokens = 7;
  request.stop.assign(16, std::string(1024, 'x'));
  request.prompt_logprobs = 20;
  EXPECT_TRUE(Validate(request).ok());
}

TEST(ValidateRequestTest, AsksForATokenizerOnlyWhenTextIsWanted) {
  Request request = Valid();
  EXPECT_TRUE(Validate(request, /*has_tokenizer=*/false).ok());
  request.detokenize = true;
  EXPECT_EQ(Validate(request, false).code(), absl::StatusCode::kFailedPrecondition);
  request.detokenize = false;
  request.stop = {"x"};
  EXPECT_EQ(Validate(request, false).code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace moed::engine
