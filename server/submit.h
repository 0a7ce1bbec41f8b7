// Hands a checked request to the engine on behalf of a call, and tells the call how it went.
// Stateless; any thread.
#pragma once

#include <grpcpp/server_context.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "runtime/engine/request.h"
#include "server/served_model.h"

namespace moed::server {

// `sink` will hear from the engine if and only if the result is OK. Takes the call's deadline.
// RESOURCE_EXHAUSTED, with a retry delay, if the queue is full; UNAVAILABLE if the engine drains or
// has failed; ALREADY_EXISTS or INVALID_ARGUMENT as the engine says.
absl::Status Submit(const ServedModel& model, const grpc::CallbackServerContext& context,
                    engine::Request request, std::shared_ptr<engine::OutputSink> sink);

// The end of a request as its client may see it; a cause inside the server goes to the log instead.
absl::Status PublicStatus(const std::string& request_id, const absl::Status& status);

}  // namespace moed::server
