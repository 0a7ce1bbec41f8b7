// From the wire to the runtime: requests are checked field by field and completed with the model's
// defaults. Free functions without state; any thread.
#pragma once

#include <google/protobuf/repeated_ptr_field.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/moed/v1/inference.pb.h"
#include "runtime/engine/request.h"
#include "server/served_model.h"

namespace moed::server {

// NOT_FOUND, naming the served model, unless `name` is empty or the served name.
absl::Status CheckModelName(const ServedModel& model, absl::string_view name);

// An engine request without sink and deadline. INVALID_ARGUMENT naming the field; NOT_FOUND for
// another model; FAILED_PRECONDITION if it needs a tokenizer or chat template that the checkpoint
// lacks; RESOURCE_EXHAUSTED if the template exceeds its limits.
absl::StatusOr<engine::Request> ToEngineRequest(const v1::GenerateRequest& request,
                                                const ServedModel& model);
absl::StatusOr<engine::Request> ToEngineRequest(const v1::ChatRequest& request,
                                                const ServedModel& model);

// Token ids of either kind of input, with the same errors.
absl::StatusOr<std::vector<int32_t>> ToTokenIds(const v1::TokenizeRequest& request,
                                                const ServedModel& model);
absl::StatusOr<std::string> ToText(const v1::DetokenizeRequest& request, const ServedModel& model);

}  // namespace moed::server
