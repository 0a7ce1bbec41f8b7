// A gRPC server in this process that answers by a script, so that the client is tested over a real
// connection without a model.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/grpc/health/v1/health.grpc.pb.h"
#include "proto/moed/v1/experts.grpc.pb.h"
#include "proto/moed/v1/inference.grpc.pb.h"

namespace moed::client {

class FakeServer : private v1::Inference::Service,
                   private v1::Experts::Service,
                   private grpc::health::v1::Health::Service {
 public:
  FakeServer() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(static_cast<v1::Inference::Service*>(this));
    builder.RegisterService(static_cast<v1::Experts::Service*>(this));
    builder.RegisterService(static_cast<grpc::health::v1::Health::Service*>(this));
    server_ = builder.BuildAndStart();
  }

  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  // What a Generate or Chat stream says, and how it ends.
  std::vector<v1::GenerateResponse> responses;
  grpc::Status end = grpc::Status::OK;
  bool hang = false;  // after the responses, until the client leaves
  v1::ExpertStats stats;
  v1::GetModelResponse model;
  grpc::health::v1::HealthCheckResponse health;  // to who asks
  std::atomic<bool> ready = true;                // to who watches

  // What was asked last.
  v1::GenerateRequest generate_request;
  v1::ChatRequest chat_request;
  std::atomic<int> generate_count = 0;
  std::atomic<bool> saw_cancel = false;

 private:
  grpc::Status Say(grpc::ServerContext* context, grpc::ServerWriter<v1::GenerateResponse>* writer) {
    for (const v1::GenerateResponse& response : responses) writer->Write(response);
    while (hang && !context->IsCancelled()) Pause();
    saw_cancel = context->IsCancelled();
    return end;
  }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    // Concurrent requests are only counted.
    if (generate_count++ == 0) generate_request = *request;
    return Say(context, writer);
  }
  grpc::Status Chat(grpc::ServerContext* context, const v1::ChatRequest* request,
                    grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    chat_request = *request;
    return Say(context, writer);
  }
  grpc::Status GetModel(grpc::ServerContext* /*context*/, const v1::GetModelRequest* /*request*/,
                        v1::GetModelResponse* response) override {
    *response = model;
    return grpc::Status::OK;
  }
  grpc::Status GetStats(grpc::ServerContext* /*context*/,
                        const v1::GetExpertStatsRequest* /*request*/,
                        v1::ExpertStats* response) override {
    *response = stats;
    return grpc::Status::OK;
  }
  grpc::Status Watch(grpc::ServerContext* /*context*/, const v1::WatchExpertsRequest* /*request*/,
                     grpc::ServerWriter<v1::ExpertStats>* writer) override {
    for (int i = 0; i < 3; ++i) writer->Write(stats);
    return grpc::Status::OK;
  }
  grpc::Status Check(grpc::ServerContext* /*context*/,
                     const grpc::health::v1::HealthCheckRequest* /*request*/,
                     grpc::health::v1::HealthCheckResponse* response) override {
    *response = health;
    return grpc::Status::OK;
  }
  grpc::Status Watch(grpc::ServerContext* context,
                     const grpc::health::v1::HealthCheckRequest* /*request*/,
                     grpc::ServerWriter<grpc::health::v1::HealthCheckResponse>* writer) override {
    using grpc::health::v1::HealthCheckResponse;
    HealthCheckResponse response;
    response.set_status(ready ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING);
    writer->Write(response);
    while (!context->IsCancelled()) Pause();
    return grpc::Status::CANCELLED;
  }

  static void Pause() {
    gpr_sleep_until(
        gpr_time_add(gpr_now(GPR_CLOCK_REALTIME), gpr_time_from_millis(5, GPR_TIMESPAN)));
  }

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

inline v1::GenerateResponse DeltaOf(int index, const std::string& text,
                                    const std::vector<int>& ids) {
  v1::GenerateResponse response;
  response.set_request_id("r1");
  response.mutable_delta()->set_index(index);
  response.mutable_delta()->set_text(text);
  for (const int id : ids) response.mutable_delta()->add_tokens()->set_id(id);
  return response;
}

inline v1::GenerateResponse FinishedOf(int sequences, v1::FinishReason reason) {
  v1::GenerateResponse response;
  for (int i = 0; i < sequences; ++i) {
    v1::SequenceFinish* finish = response.mutable_finished()->add_sequences();
    finish->set_index(i);
    finish->set_reason(reason);
  }
  v1::Usage* usage = response.mutable_finished()->mutable_usage();
  usage->set_prompt_tokens(3);
  usage->set_completion_tokens(2);
  usage->set_time_to_first_token_seconds(0.25);
  usage->mutable_experts()->set_hits(6);
  usage->mutable_experts()->set_misses(2);
  usage->mutable_experts()->set_bytes_paged(2048);
  usage->mutable_experts()->set_stall_seconds(0.5);
  return response;
}

}  // namespace moed::client
