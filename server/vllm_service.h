// vllm.grpc.engine.VllmEngine over the same engine as moed.v1.Inference, for routers and gateways
// that know vLLM's gRPC. Callback API: no method blocks.
#pragma once

#include <atomic>

#include "absl/time/time.h"
#include "proto/vllm/engine.grpc.pb.h"
#include "server/model_slot.h"

namespace moed::server {

class VllmService final : public vllm::grpc::engine::VllmEngine::CallbackService {
 public:
  // `ready`: what the health service says, false too while draining.
  VllmService(const ModelSlot* slot, const std::atomic<bool>* ready);

  grpc::ServerWriteReactor<vllm::grpc::engine::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context,
      const vllm::grpc::engine::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const vllm::grpc::engine::AbortRequest* request,
                                  vllm::grpc::engine::AbortResponse* response) override;
  grpc::ServerUnaryReactor* HealthCheck(grpc::CallbackServerContext* context,
                                        const vllm::grpc::engine::HealthCheckRequest* request,
                                        vllm::grpc::engine::HealthCheckResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(
      grpc::CallbackServerContext* context, const vllm::grpc::engine::GetModelInfoRequest* request,
      vllm::grpc::engine::GetModelInfoResponse* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(
      grpc::CallbackServerContext* context, const vllm::grpc::engine::GetServerInfoRequest* request,
      vllm::grpc::engine::GetServerInfoResponse* response) override;
  grpc::ServerUnaryReactor* GetLoads(grpc::CallbackServerContext* context,
                                     const vllm::grpc::engine::GetLoadsRequest* request,
                                     vllm::grpc::engine::GetLoadsResponse* response) override;
  grpc::ServerWriteReactor<smg::grpc::common::GetTokenizerChunk>* GetTokenizer(
      grpc::CallbackServerContext* context,
      const smg::grpc::common::GetTokenizerRequest* request) override;

 private:
  const ModelSlot& slot_;
  const std::atomic<bool>& ready_;
  const absl::Time start_;
};

}  // namespace moed::server
