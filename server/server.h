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
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "server/access_control.h"
#include "server/activity_log.h"
#include "server/admin_service.h"
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
  // kNoPort if it was not asked for.
  int health_port() const { return health_listener_ ? health_listener_->port() : kNoPort; }
  int gateway_port() const { return gateway_ ? gateway_->port() : kNoPort; }
  int admin_port() const { return admin_ ? admin_->port() : kNoPort; }
  bool loaded() const { return slot_.get() != nullptr; }

  // Serves until asked to stop, then drains: refuses new requests, lets running ones finish for
  // drain_seconds, cancels the rest. Not OK: the loader's error, or UNAVAILABLE if the engine
  // failed or hangs. If what hangs would keep it from returning, it ends the process instead. Once.
  absl::Status Run(const StopRequested& stop_requested);
  // False after Run: a thread that the destructor waits for may never end. Exit without it.
  bool may_be_destroyed() const { return loaded() && !hung_; }

  // AccessControl::Reload. Any thread.
  void Reload() { access_->Reload(); }
  // What the health service says. The thread of Run.
  Health health() const { return health_published_.value_or(Health()); }

 private:
  explicit Server(const Options& options);

  absl::Status Listen();
  // A listener beside the API's, if its port was asked for.
  absl::StatusOr<std::unique_ptr<GrpcListener>> ListenBeside(
      const std::string& host, int port, const char* flag,
      std::shared_ptr<grpc::ServerCredentials> credentials, std::vector<grpc::Service*> services);
  // Every gRPC listener there is.
  std::vector<GrpcListener*> Listeners() const;
  void Load(const ModelLoader& loader);
  // Not OK: there is no point in going on.
  absl::Status CheckModel();
  void PublishHealth(const Health& health);
  // A thread of its own: sets hung_, and exits if Run does not return soon after.
  void Watch();
  void Drain(absl::Duration patience);
  // True once no request is open; false at the deadline, or if the engine hangs.
  bool DrainEngine(engine::Engine& engine, absl::Time deadline);

  const Options options_;
  ModelSlot slot_;  // before the services, which read it
  InferenceService inference_;
  std::atomic<bool> ready_ = false;  // the health last published
  ExpertsService experts_;
  AdminService admin_service_;
  VllmService vllm_;
  std::unique_ptr<AccessControl> access_;
  std::unique_ptr<MetricsListener> metrics_;
  std::unique_ptr<GrpcListener> api_;
  std::unique_ptr<GrpcListener> health_listener_;
  std::unique_ptr<GrpcListener> gateway_;
  std::unique_ptr<GrpcListener> admin_;
  std::optional<Health> health_published_;
  ActivityLog activity_;
  absl::Mutex load_mutex_;
  absl::Status load_status_ ABSL_GUARDED_BY(load_mutex_);
  std::thread loader_thread_;
  std::atomic<bool> hung_ = false;
  std::atomic<int64_t> stalled_ms_ = 0;  // how long the engine has made no progress
  absl::Notification stopped_;
};

}  // namespace moed::server
