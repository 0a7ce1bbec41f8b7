// Requests of vllm.grpc.engine.VllmEngine, rewritten as moed.v1 requests so that one code checks
// and completes both. Free functions without state; any thread.
#pragma once

#include "absl/status/statusor.h"
#include "proto/moed/v1/inference.pb.h"
#include "proto/vllm/engine.pb.h"
#include "runtime/engine/request.h"
#include "server/served_model.h"

namespace moed::server {

// An engine request without sink and deadline; deltas carry ids alone. INVALID_ARGUMENT naming the
// field; UNIMPLEMENTED for what moed does not do (constrained decoding, multimodal inputs, KV
// transfer).
absl::StatusOr<engine::Request> ToEngineRequest(const vllm::grpc::engine::GenerateRequest& request,
                                                const ServedModel& model);

// The same request in moed's words. Where vLLM's engine has neutral values and moed would take the
// checkpoint's defaults, neutral values are set: gateways apply those defaults themselves.
absl::StatusOr<v1::GenerateRequest> ToMoedRequest(
    const vllm::grpc::engine::GenerateRequest& request, const ServedModel& model);

}  // namespace moed::server
