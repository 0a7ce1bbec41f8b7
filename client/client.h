// A C++ client of moed's gRPC services, over one connection. Any thread may make calls at once.
//
//   auto client = client::Client::Connect({.address = "127.0.0.1:8500"});
//   v1::GenerateRequest request;
//   request.set_text("Once upon a time");
//   client::Call call(absl::Seconds(30));
//   absl::Status status = (*client)->Generate(request, call, [](const auto& response) { ... });
//
// Every Status carries the server's gRPC code and message: RESOURCE_EXHAUSTED when its queue is
// full, UNAVAILABLE when it cannot be reached or drains, CANCELLED and DEADLINE_EXCEEDED for a
// call's own end.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/credentials.h"
#include "proto/grpc/health/v1/health.grpc.pb.h"
#include "proto/moed/v1/admin.grpc.pb.h"
#include "proto/moed/v1/experts.grpc.pb.h"
#include "proto/moed/v1/inference.grpc.pb.h"

namespace moed::client {

struct ConnectOptions {
  // host:port, or a gRPC target such as dns:///name:port; several addresses behind it are used in
  // turn.
  std::string address = "127.0.0.1:8500";
  absl::Duration timeout = absl::Seconds(10);
  SecurityOptions security = {};
  // Calls go to replicas alone whose health says that they can serve; one that loads or drains is
  // passed over before it must refuse. Off, for asking a replica that cannot serve how it is.
  bool ready_replicas_only = false;
};

// One call: its deadline, and a way to end it early. Used for a single call; outlives it.
class Call {
 public:
  explicit Call(absl::Duration timeout = absl::InfiniteDuration());
  // From any thread, before or during the call; it then ends with CANCELLED.
  void Cancel() { context_.TryCancel(); }
  grpc::ClientContext* context() { return &context_; }

 private:
  grpc::ClientContext context_;
};

class Client {
 public:
  using OnResponse = std::function<void(const v1::GenerateResponse&)>;
  using OnStats = std::function<void(const v1::ExpertStats&)>;
  using OnDone = std::function<void(const absl::Status&)>;

  // UNAVAILABLE if nothing answers at the address in time, or is ready if that is asked for; errors
  // of OpenChannel.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const ConnectOptions& options);
  // For a channel made elsewhere, with credentials of its own.
  explicit Client(const std::shared_ptr<grpc::Channel>& channel);

  // Block until the stream ends; `on_response` is called in between, on this thread.
  absl::Status Generate(const v1::GenerateRequest& request, Call& call,
                        const OnResponse& on_response);
  absl::Status Chat(const v1::ChatRequest& request, Call& call, const OnResponse& on_response);

  // Returns at once. The callbacks come from gRPC's threads, never two at a time for one call;
  // `on_done` comes last. The client must outlive the call.
  void StartGenerate(v1::GenerateRequest request, std::shared_ptr<Call> call,
                     OnResponse on_response, OnDone on_done);

  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request, Call& call);
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                    Call& call);
  absl::StatusOr<v1::GetModelResponse> GetModel(const v1::GetModelRequest& request, Call& call);
  absl::StatusOr<v1::ExpertStats> GetExpertStats(const v1::GetExpertStatsRequest& request,
                                                 Call& call);
  // Blocks until the call is cancelled or the server ends it.
  absl::Status WatchExperts(const v1::WatchExpertsRequest& request, Call& call,
                            const OnStats& on_stats);
  absl::StatusOr<v1::BudgetCurve> GetBudgetCurve(const v1::GetBudgetCurveRequest& request,
                                                 Call& call);
  // These only where a daemon has its admin service: a port of its own.
  absl::StatusOr<v1::SetBudgetResponse> SetBudget(const v1::SetBudgetRequest& request, Call& call);
  absl::StatusOr<v1::PinExpertsResponse> PinExperts(const v1::PinExpertsRequest& request,
                                                    Call& call);
  absl::StatusOr<v1::UnpinExpertsResponse> UnpinExperts(const v1::UnpinExpertsRequest& request,
                                                        Call& call);
  absl::StatusOr<v1::SaveHotSetResponse> SaveHotSet(const v1::SaveHotSetRequest& request,
                                                    Call& call);
  absl::StatusOr<v1::ResetStatsResponse> ResetStats(const v1::ResetStatsRequest& request,
                                                    Call& call);
  // `service` empty: whether the process lives; a service's full name: whether it can serve.
  absl::StatusOr<grpc::health::v1::HealthCheckResponse> CheckHealth(const std::string& service,
                                                                    Call& call);

 private:
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Experts::Stub> experts_;
  std::unique_ptr<v1::Admin::Stub> admin_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};

}  // namespace moed::client
