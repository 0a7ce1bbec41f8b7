// What VllmEngine's questions about model, server and load are answered from. Free functions
// without state; any thread.
#pragma once

#include "absl/time/time.h"
#include "proto/vllm/engine.pb.h"
#include "runtime/engine/engine.h"
#include "server/served_model.h"

namespace moed::server {

void FillModelInfo(const ServedModel& model, vllm::grpc::engine::GetModelInfoResponse* message);
void FillServerInfo(const ServedModel& model, const engine::EngineSnapshot& snapshot,
                    double uptime_seconds, vllm::grpc::engine::GetServerInfoResponse* message);
void FillLoads(const ServedModel& model, const engine::EngineSnapshot& snapshot, absl::Time now,
               vllm::grpc::engine::GetLoadsResponse* message);

}  // namespace moed::server
