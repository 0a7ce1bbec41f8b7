// One streaming generation: takes the engine's output for a request and writes it to the client,
// one write at a time, from a bounded buffer. The engine's output thread never waits for a client:
// a slow one gets joined deltas, one that stops reading is cut off.
//
// `Buffer` (StreamBuffer, VllmStreamBuffer) is what differs between the APIs: it makes the
// messages.
//
// Owned jointly by gRPC, until its OnDone, and by the engine, until its own; either may end first.
// gRPC's threads and the engine's output thread meet in `mutex_`.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "runtime/engine/request.h"
#include "server/model_slot.h"
#include "server/request_metrics.h"

namespace moed::server {

template <typename Buffer>
class GenerateReactor final : public grpc::ServerWriteReactor<typename Buffer::Response>,
                              public engine::OutputSink {
 public:
  using Response = typename Buffer::Response;
  using Writer = grpc::ServerWriteReactor<Response>;

  // Submits `request`; a reactor that finishes at once if it is not OK or refused. `options` are
  // the buffer's, if the request alone does not say them.
  static Writer* Start(grpc::CallbackServerContext* context, const Serving& serving,
                       absl::StatusOr<engine::Request> request);
  static Writer* Start(grpc::CallbackServerContext* context, const Serving& serving,
                       engine::Request request, const typename Buffer::Options& options);

  // From the engine.
  void OnPromptLogprobs(std::vector<std::vector<model::TokenLogprob>> logprobs) override;
  void OnDelta(engine::Delta delta) override;
  void OnSequenceFinish(engine::SequenceFinish finish) override;
  void OnDone(const absl::Status& status, const engine::Usage& usage) override;

  // From gRPC.
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  GenerateReactor(grpc::CallbackServerContext* context, const Serving& serving,
                  const engine::Request& request, const typename Buffer::Options& options);

  // Writes the next message if none is outstanding; finishes after the last.
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Nothing more is taken from the engine and what waits is dropped; the call ends with `status`.
  void Close(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  grpc::CallbackServerContext* const context_;
  engine::Engine* const engine_;
  RequestMetrics* const metrics_;
  const std::string request_id_;
  RequestTimer timer_;                     // engine's output thread only
  std::shared_ptr<GenerateReactor> self_;  // gRPC's share

  absl::Mutex mutex_;
  Buffer buffer_ ABSL_GUARDED_BY(mutex_);
  Response outgoing_;  // belongs to the write that is outstanding
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> result_ ABSL_GUARDED_BY(mutex_);  // set: no more events will come
};

}  // namespace moed::server
