#include "server/grpc_status.h"

#include <google/protobuf/util/time_util.h>

#include <cstdint>
#include <iterator>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/google/rpc/error_details.pb.h"
#include "proto/google/rpc/status.pb.h"

namespace moed::server {
namespace {

// Payloads by which details travel inside an absl::Status.
constexpr char kFieldPayload[] = "moed/field";
constexpr char kRetryPayload[] = "moed/retry-delay-ms";

// By code.
constexpr const char* kCodeNames[] = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

// 0: the status bears none.
int64_t RetryDelayMs(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryPayload);
  int64_t delay_ms = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &delay_ms)) return 0;
  return delay_ms;
}

}  // namespace

absl::Status InvalidField(absl::string_view field, absl::string_view problem) {
  absl::Status status = absl::InvalidArgumentError(absl::StrCat(field, ": ", problem));
  status.SetPayload(kFieldPayload, absl::Cord(field));
  return status;
}

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  status.SetPayload(kRetryPayload, absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(delay))));
  return status;
}

absl::Status HideInternals(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
      return status;
    case absl::StatusCode::kUnavailable:
      return absl::UnavailableError(
          "the server is shutting down or its engine has stopped; try another replica");
    default:
      return absl::InternalError("the request failed inside the server; its log has the cause");
  }
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string message(status.message());
  google::rpc::Status details;
  details.set_code(static_cast<int>(status.code()));
  details.set_message(message);
  if (const auto field = status.GetPayload(kFieldPayload)) {
    google::rpc::BadRequest bad_request;
    google::rpc::BadRequest::FieldViolation* violation = bad_request.add_field_violations();
    violation->set_field(std::string(*field));
    violation->set_description(message);
    details.add_details()->PackFrom(bad_request);
  }
  if (const int64_t delay_ms = RetryDelayMs(status); delay_ms > 0) {
    google::rpc::RetryInfo retry;
    *retry.mutable_retry_delay() =
        google::protobuf::util::TimeUtil::MillisecondsToDuration(delay_ms);
    details.add_details()->PackFrom(retry);
  }
  const auto code = static_cast<grpc::StatusCode>(status.code());
  if (details.details().empty()) return {code, message};
  return {code, message, details.SerializeAsString()};
}

grpc::Status ToGrpcStatus(const absl::Status& status, grpc::ServerContextBase& context) {
  const int64_t delay_ms = RetryDelayMs(status);
  if (delay_ms > 0) context.AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(delay_ms));
  return ToGrpcStatus(status);
}

const char* CodeName(int code) {
  const bool known = code >= 0 && code < static_cast<int>(std::size(kCodeNames));
  return known ? kCodeNames[code] : "UNKNOWN";
}

bool IsServerFault(grpc::StatusCode code) {
  return code == grpc::StatusCode::UNKNOWN || code == grpc::StatusCode::INTERNAL ||
         code == grpc::StatusCode::DATA_LOSS;
}

}  // namespace moed::server
