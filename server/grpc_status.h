// The one place where a Status becomes a grpc::Status, with google.rpc details: BadRequest for a
// wrong field, RetryInfo and a retry-pushback trailer for overload. Stateless; any thread.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace moed::server {

// INVALID_ARGUMENT about one field; `field` is its path in the request ("sampling.top_p").
absl::Status InvalidField(absl::string_view field, absl::string_view problem);

// `status` with a hint to clients when to try again.
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);

// A status of the engine as clients may see it: causes inside the server (files, devices, bugs) are
// replaced by a fixed sentence, for they may name paths.
absl::Status HideInternals(const absl::Status& status);

// Same code and message, and the details serialized as google.rpc.Status.
grpc::Status ToGrpcStatus(const absl::Status& status);

// The same for a call about to finish; adds the `grpc-retry-pushback-ms` trailer to its context if
// the status bears a retry delay.
grpc::Status ToGrpcStatus(const absl::Status& status, grpc::ServerContextBase& context);

// "OK", "RESOURCE_EXHAUSTED", …; "UNKNOWN" for what is no code.
const char* CodeName(int code);

// Whether a call's code speaks of a fault of the server, not of its client or of load.
bool IsServerFault(grpc::StatusCode code);

}  // namespace moed::server
