// One generation answered in a single message: gathers the engine's output and finishes when the
// engine does. Owned jointly by gRPC and the engine, like GenerateReactor.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "proto/moed/v1/inference.pb.h"
#include "runtime/engine/request.h"
#include "server/model_slot.h"
#include "server/request_metrics.h"

namespace moed::server {

class GenerateOnceReactor final : public grpc::ServerUnaryReactor, public engine::OutputSink {
 public:
  // Submits `request`; a reactor that finishes at once if it is not OK or refused.
  static grpc::ServerUnaryReactor* Start(grpc::CallbackServerContext* context,
                                         const Serving& serving,
                                         absl::StatusOr<engine::Request> request,
                                         v1::GenerateOnceResponse* response);

  // From the engine.
  void OnPromptLogprobs(std::vector<std::vector<model::TokenLogprob>> logprobs) override;
  void OnDelta(engine::Delta delta) override;
  void OnSequenceFinish(engine::SequenceFinish finish) override;
  void OnDone(const absl::Status& status, const engine::Usage& usage) override;

  // From gRPC.
  void OnCancel() override;
  void OnDone() override;

 private:
  GenerateOnceReactor(grpc::CallbackServerContext* context, const Serving& serving,
                      const engine::Request& request, v1::GenerateOnceResponse* response);

  void End(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  grpc::CallbackServerContext* const context_;
  engine::Engine* const engine_;
  RequestMetrics* const metrics_;
  const std::string request_id_;
  const bool with_logprobs_;
  const int32_t first_prompt_token_;
  RequestTimer timer_;                         // engine's output thread only
  std::shared_ptr<GenerateOnceReactor> self_;  // gRPC's share

  absl::Mutex mutex_;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;  // then the response is gRPC's
  v1::GenerateOnceResponse* const response_ ABSL_PT_GUARDED_BY(mutex_);
  size_t response_tokens_ ABSL_GUARDED_BY(mutex_) = 0;  // alternatives among them
};

}  // namespace moed::server
