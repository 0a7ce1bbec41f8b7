// The daemon: listens at once, loads the model in the background, serves, drains. Owns everything
// that lives as long as the process; main makes one, tests make many.
//
//   auto server = Server::Create(options, LoadModel);
//   absl::Status status = (*server)->Run(stop_requested);
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/activity_log.h"
#include "server/experts_service.h"
#include "server/grpc_listener.h"
#include "server/health.h"
#include "server/inference_service.h"
#include "server/metrics_listener.h"
#include "server/model_slot.h"
#include "server/options.h"
#include "server/vllm_service.h"

namespace moed::server {

// Makes what is to be served; runs once, on a thread of its own.
using ModelLoader =
    std::function<absl::StatusOr<std::unique_ptr<ServedModel>>(const Options& options)>;

// Waits at most so long; true once the server is to stop.
using StopRequested = std::function<bool(absl::Duration timeout)>;

class Server {
 public:
  // Listening when it returns: health says NOT_SERVING and calls get UNAVAILABLE until the model is
  // loaded. UNAVAILABLE, naming address and flag, if a port cannot be had.
  static absl::StatusOr<std::unique_ptr<Server>> Create(const Options& options, ModelLoader loader);
  // Waits for the loader, which cannot be interrupted.
  ~Server();

  int port() const { return api_->port(); }
  int metrics_port() const { return metrics_->port(); }
  bool loaded() const { return slot_.get() != nullptr; }

  // Serves until asked to stop, then drains: refuses new requests, lets running ones finish for
  // drain_seconds, cancels the rest. Not OK: the loader's error, or UNAVAILABLE if the engine
  // failed.
  absl::Status Run(const StopRequested& stop_requested);

 private:
  explicit Server(const Options& options);

  absl::Status Listen();
  void Load(const ModelLoader& loader);
  // Not OK: there is no point in going on.
  absl::Status CheckModel();
  void PublishHealth(const Health& health);
  void Drain(absl::Duration patience);

  const Options options_;
  ModelSlot slot_;  // before the services, which read it
  InferenceService inference_;
  std::atomic<bool> ready_ = false;  // the health last published
  ExpertsService experts_;
  VllmService vllm_;
  std::unique_ptr<MetricsListener> metrics_;
  std::unique_ptr<GrpcListener> api_;
  std::optional<Health> health_published_;
  ActivityLog activity_;
  absl::Mutex load_mutex_;
  absl::Status load_status_ ABSL_GUARDED_BY(load_mutex_);
  std::thread loader_thread_;
};

}  // namespace moed::server
