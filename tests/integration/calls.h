// Calls as tests make them, of a server in the test or in another process: requests, what streams
// gave, and waiting for what will be.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "proto/moed/v1/inference.grpc.pb.h"

namespace moed::server {

// All that a streaming call gave.
struct StreamOutcome {
  grpc::Status status;
  std::string text;
  std::vector<int32_t> tokens;  // of sequence 0
  int messages = 0;             // deltas
  v1::Finished finished;
};
StreamOutcome ReadStream(grpc::ClientReader<v1::GenerateResponse>& reader);
StreamOutcome Generate(v1::Inference::Stub& stub, const v1::GenerateRequest& request);

// A greedy request for `max_tokens` tokens after a prompt of ids, past end tokens.
v1::GenerateRequest TokensRequest(int prompt_tokens, int64_t max_tokens);

// True as soon as `condition` is; false after 20 seconds.
bool Eventually(absl::FunctionRef<bool()> condition);

}  // namespace moed::server
