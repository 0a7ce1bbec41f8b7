#include "tests/integration/calls.h"

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace moed::server {

StreamOutcome ReadStream(grpc::ClientReader<v1::GenerateResponse>& reader) {
  StreamOutcome outcome;
  v1::GenerateResponse response;
  while (reader.Read(&response)) {
    if (response.has_finished()) outcome.finished = response.finished();
    if (!response.has_delta()) continue;
    ++outcome.messages;
    if (response.delta().index() != 0) continue;
    outcome.text += response.delta().text();
    for (const v1::Token& token : response.delta().tokens()) outcome.tokens.push_back(token.id());
  }
  outcome.status = reader.Finish();
  return outcome;
}

StreamOutcome Generate(v1::Inference::Stub& stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  return ReadStream(*stub.Generate(&context, request));
}

v1::GenerateRequest TokensRequest(int prompt_tokens, int64_t max_tokens) {
  v1::GenerateRequest request;
  for (int i = 0; i < prompt_tokens; ++i) request.mutable_tokens()->add_ids(1 + i % 100);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_tokens(max_tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  return request;
}

bool Eventually(absl::FunctionRef<bool()> condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(10));
  }
  return false;
}

}  // namespace moed::server
