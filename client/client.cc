#include "client/client.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/substitute.h"
#include "client/generate_reader.h"
#include "client/grpc_status.h"

namespace moed::client {
namespace {

// Log-probabilities of a long prompt are larger than gRPC's default of 4 MiB.
constexpr int kMaxMessageBytes = 64 << 20;

// A replica that was restarted is found again within this time, so that the next one may go.
constexpr int kFirstReconnectMs = 100;
constexpr int kMaxReconnectMs = 500;

// A target of several replicas is used in turn, and a call that one of them refuses before it has
// answered anything (it drains, loads or is gone) goes to the next. A server that shuts down while
// a call is on its way cancels it; what this side cancels is never tried again.
//
// Five attempts, gRPC's most, are too few where one of two replicas refuses for seconds: one call
// in 2^5 meets it each time. So replicas are also watched, and used while they are healthy.
std::string ServiceConfig(bool ready_replicas_only) {
  constexpr absl::string_view kFormat = R"({
    $0
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [{
      "name": [{}],
      "retryPolicy": {
        "maxAttempts": 5,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]
      }
    }]
  })";
  const std::string health = absl::StrCat(R"("healthCheckConfig": {"serviceName": ")",
                                          v1::Inference::service_full_name(), "\"},");
  return absl::Substitute(kFormat, ready_replicas_only ? health : "");
}

grpc::ChannelArguments ArgumentsFor(const ConnectOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetServiceConfigJSON(ServiceConfig(options.ready_replicas_only));
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kFirstReconnectMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectMs);
  return arguments;
}

template <typename Response, typename Reader>
absl::Status ReadAll(Reader reader, const std::function<void(const Response&)>& on_response) {
  Response response;
  while (reader->Read(&response)) on_response(response);
  return ToStatus(reader->Finish());
}

// One unary call, `method` of `stub`.
template <typename Response, typename Stub, typename Method, typename Request>
absl::StatusOr<Response> Ask(Stub& stub, Method method, const Request& request, Call& call) {
  Response response;
  absl::Status status = ToStatus((stub.*method)(call.context(), request, &response));
  if (!status.ok()) return status;
  return response;
}

}  // namespace

Call::Call(absl::Duration timeout) {
  if (timeout == absl::InfiniteDuration()) return;
  context_.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
}

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const ConnectOptions& options) {
  const auto opened = OpenChannel(options.address, options.security, ArgumentsFor(options));
  if (!opened.ok()) return opened.status();
  const std::shared_ptr<grpc::Channel>& channel = *opened;
  const auto deadline =
      std::chrono::system_clock::now() + absl::ToChronoMilliseconds(options.timeout);
  if (!channel->WaitForConnected(deadline)) {
    const char* wanted = options.ready_replicas_only ? "ready server" : "server";
    return absl::UnavailableError(absl::StrCat("no ", wanted, " answers at ", options.address,
                                               " within ", absl::FormatDuration(options.timeout),
                                               "; is moed running there? moedctl health asks it"));
  }
  return std::make_unique<Client>(channel);
}

Client::Client(const std::shared_ptr<grpc::Channel>& channel)
    : inference_(v1::Inference::NewStub(channel)),
      experts_(v1::Experts::NewStub(channel)),
      admin_(v1::Admin::NewStub(channel)),
      health_(grpc::health::v1::Health::NewStub(channel)) {}

absl::Status Client::Generate(const v1::GenerateRequest& request, Call& call,
                              const OnResponse& on_response) {
  return ReadAll(inference_->Generate(call.context(), request), on_response);
}

absl::Status Client::Chat(const v1::ChatRequest& request, Call& call,
                          const OnResponse& on_response) {
  return ReadAll(inference_->Chat(call.context(), request), on_response);
}

void Client::StartGenerate(v1::GenerateRequest request, std::shared_ptr<Call> call,
                           OnResponse on_response, OnDone on_done) {
  GenerateReader::Start(*inference_, std::move(request), std::move(call), std::move(on_response),
                        std::move(on_done));
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(const v1::TokenizeRequest& request,
                                                      Call& call) {
  return Ask<v1::TokenizeResponse>(*inference_, &v1::Inference::Stub::Tokenize, request, call);
}

absl::StatusOr<v1::DetokenizeResponse> Client::Detokenize(const v1::DetokenizeRequest& request,
                                                          Call& call) {
  return Ask<v1::DetokenizeResponse>(*inference_, &v1::Inference::Stub::Detokenize, request, call);
}

absl::StatusOr<v1::GetModelResponse> Client::GetModel(const v1::GetModelRequest& request,
                                                      Call& call) {
  return Ask<v1::GetModelResponse>(*inference_, &v1::Inference::Stub::GetModel, request, call);
}

absl::StatusOr<v1::ExpertStats> Client::GetExpertStats(const v1::GetExpertStatsRequest& request,
                                                       Call& call) {
  return Ask<v1::ExpertStats>(*experts_, &v1::Experts::Stub::GetStats, request, call);
}

absl::Status Client::WatchExperts(const v1::WatchExpertsRequest& request, Call& call,
                                  const OnStats& on_stats) {
  return ReadAll(experts_->Watch(call.context(), request), on_stats);
}

absl::StatusOr<v1::BudgetCurve> Client::GetBudgetCurve(const v1::GetBudgetCurveRequest& request,
                                                       Call& call) {
  return Ask<v1::BudgetCurve>(*experts_, &v1::Experts::Stub::GetBudgetCurve, request, call);
}

absl::StatusOr<v1::SetBudgetResponse> Client::SetBudget(const v1::SetBudgetRequest& request,
                                                        Call& call) {
  return Ask<v1::SetBudgetResponse>(*admin_, &v1::Admin::Stub::SetBudget, request, call);
}

absl::StatusOr<v1::PinExpertsResponse> Client::PinExperts(const v1::PinExpertsRequest& request,
                                                          Call& call) {
  return Ask<v1::PinExpertsResponse>(*admin_, &v1::Admin::Stub::PinExperts, request, call);
}

absl::StatusOr<v1::UnpinExpertsResponse> Client::UnpinExperts(
    const v1::UnpinExpertsRequest& request, Call& call) {
  return Ask<v1::UnpinExpertsResponse>(*admin_, &v1::Admin::Stub::UnpinExperts, request, call);
}

absl::StatusOr<v1::SaveHotSetResponse> Client::SaveHotSet(const v1::SaveHotSetRequest& request,
                                                          Call& call) {
  return Ask<v1::SaveHotSetResponse>(*admin_, &v1::Admin::Stub::SaveHotSet, request, call);
}

absl::StatusOr<v1::ResetStatsResponse> Client::ResetStats(const v1::ResetStatsRequest& request,
                                                          Call& call) {
  return Ask<v1::ResetStatsResponse>(*admin_, &v1::Admin::Stub::ResetStats, request, call);
}

absl::StatusOr<grpc::health::v1::HealthCheckResponse> Client::CheckHealth(
    const std::string& service, Call& call) {
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  return Ask<grpc::health::v1::HealthCheckResponse>(
      *health_, &grpc::health::v1::Health::Stub::Check, request, call);
}

}  // namespace moed::client
