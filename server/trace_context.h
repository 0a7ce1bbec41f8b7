// Which trace and which request of a caller a call belongs to, from its metadata: W3C traceparent
// (https://www.w3.org/TR/trace-context/) and x-request-id. Strangers write them, so what is not
// well formed is dropped. Free functions; any thread.
#pragma once

#include <grpcpp/server_context.h>

#include <string>

#include "absl/strings/string_view.h"

namespace moed::server {

struct TraceContext {
  std::string traceparent;  // empty: none, or not valid
  std::string request_id;   // the caller's own; empty: none
};

TraceContext TraceContextOf(const grpc::ServerContextBase& context);

// version-trace id-parent id-flags in lower-case hexadecimal, neither id zero.
bool IsTraceparent(absl::string_view text);

}  // namespace moed::server
