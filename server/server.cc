#include "server/server.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/listen_address.h"
#include "server/watchdog.h"

namespace moed::server {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(200);
// For what drained calls still have to write.
constexpr absl::Duration kCloseGrace = absl::Seconds(5);
// From the moment a hang is noticed: for telling the clients, then for everything.
constexpr absl::Duration kHangNotice = absl::Seconds(1);
constexpr absl::Duration kHangGrace = absl::Seconds(4);

// What all listeners have in common.
GrpcListenerOptions LimitsOf(const Options& options) {
  GrpcListenerOptions limits;
  limits.max_message_bytes = options.max_message_bytes;
  limits.max_metadata_bytes = options.max_metadata_bytes;
  if (options.max_connection_age_seconds > 0) {
    limits.max_connection_age = absl::Seconds(options.max_connection_age_seconds);
  }
  return limits;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Create(const Options& options, ModelLoader loader) {
  std::unique_ptr<Server> server(new Server(options));
  absl::Status status = server->Listen();
  if (!status.ok()) return status;
  server->loader_thread_ =
      std::thread([raw = server.get(), load = std::move(loader)] { raw->Load(load); });
  return server;
}

Server::Server(const Options& options)
    : options_(options),
      inference_(&slot_),
      experts_(&slot_),
      admin_service_(&slot_),
      vllm_(&slot_, &ready_) {}

Server::~Server() {
  // No call may outlive what it runs on.
  gateway_.reset();
  api_.reset();
  admin_.reset();
  if (loader_thread_.joinable()) loader_thread_.join();
}

absl::Status Server::Listen() {
  auto access = AccessControl::Load(options_);
  if (!access.ok()) return access.status();
  access_ = *std::move(access);
  auto metrics =
      MetricsListener::Start({.host = options_.host,
                              .port = options_.metrics_port,
                              .tls = options_.metrics_tls,
                              .tls_reload_interval = absl::Seconds(options_.tls_reload_seconds),
                              .users = access_->metrics_users()},
                             &slot_);
  if (!metrics.ok()) return metrics.status();
  metrics_ = *std::move(metrics);

  GrpcListenerOptions api = LimitsOf(options_);
  api.address = ListenAddress(options_.host, options_.port);
  api.flag = "--port";
  api.credentials = access_->api();
  api.services = {&inference_, &experts_, &vllm_};
  api.reflection = true;
  auto listener = GrpcListener::Start(api);
  if (!listener.ok()) return listener.status();
  api_ = *std::move(listener);
  const auto plain = grpc::InsecureServerCredentials();
  auto health = ListenBeside(options_.host, options_.health_port, "--health-port", plain, {});
  if (!health.ok()) return health.status();
  health_listener_ = *std::move(health);
  auto gateway =
      ListenBeside(options_.host, options_.gateway_port, "--gateway-port", plain, {&vllm_});
  if (!gateway.ok()) return gateway.status();
  gateway_ = *std::move(gateway);
  auto admin = ListenBeside(options_.admin_host, options_.admin_port, "--admin-port",
                            access_->admin(), {&admin_service_});
  if (!admin.ok()) return admin.status();
  admin_ = *std::move(admin);
  PublishHealth(EvaluateHealth(/*snapshot=*/nullptr, absl::Now()));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<GrpcListener>> Server::ListenBeside(
    const std::string& host, int port, const char* flag,
    std::shared_ptr<grpc::ServerCredentials> credentials, std::vector<grpc::Service*> services) {
  if (port == kNoPort) return nullptr;
  GrpcListenerOptions options = LimitsOf(options_);
  options.address = ListenAddress(host, port);
  options.flag = flag;
  options.credentials = std::move(credentials);
  options.services = std::move(services);
  return GrpcListener::Start(options);
}

std::vector<GrpcListener*> Server::Listeners() const {
  std::vector<GrpcListener*> listeners;
  for (const auto* listener : {&api_, &health_listener_, &gateway_, &admin_}) {
    if (*listener != nullptr) listeners.push_back(listener->get());
  }
  return listeners;
}

void Server::Load(const ModelLoader& loader) {
  auto model = loader(options_);
  if (model.ok()) {
    spdlog::info("serving \"{}\"", (*model)->name);
    slot_.Publish(*std::move(model));
    return;
  }
  absl::MutexLock lock(&load_mutex_);
  load_status_ = model.status();
}

absl::Status Server::Run(const StopRequested& stop_requested) {
  std::thread watcher([this] { Watch(); });
  absl::Status status;
  bool stopping = false;
  while (status.ok() && !stopping) {
    stopping = stop_requested(kTick);
    status = CheckModel();  // also after the request to stop: a failure must not pass for a drain
  }
  if (status.ok()) spdlog::info("asked to stop; draining");
  Drain(status.ok() ? absl::Seconds(options_.drain_seconds) : absl::ZeroDuration());
  stopped_.Notify();
  watcher.join();
  if (status.ok() && hung_) return absl::UnavailableError("the engine hangs");
  return status;
}

void Server::Watch() {
  Watchdog watchdog(absl::Seconds(options_.watchdog_seconds));
  while (!stopped_.WaitForNotificationWithTimeout(kTick)) {
    const Serving* serving = slot_.get();
    if (serving == nullptr) continue;
    hung_ = watchdog.Update(serving->model->engine->progress(), Watchdog::Clock::now());
    stalled_ms_ = absl::ToInt64Milliseconds(watchdog.stalled());
    if (!hung_) continue;
    if (!stopped_.WaitForNotificationWithTimeout(kHangGrace)) std::_Exit(EXIT_FAILURE);
    return;
  }
}

absl::Status Server::CheckModel() {
  {
    absl::MutexLock lock(&load_mutex_);
    if (!load_status_.ok()) return load_status_;
  }
  const Serving* serving = slot_.get();
  if (serving == nullptr) return absl::OkStatus();
  if (hung_) {
    serving->model->engine->Abandon(
        absl::UnavailableError("the server hangs and is being ended; try another"));
  }
  engine::EngineSnapshot snapshot = serving->model->engine->Snapshot();
  const absl::Time now = absl::Now();
  // Also within a step.
  snapshot.last_progress =
      std::max(snapshot.last_progress, now - absl::Milliseconds(stalled_ms_.load()));
  PublishHealth(EvaluateHealth(&snapshot, now));
  activity_.Update(snapshot, now);
  if (hung_) {
    return absl::UnavailableError(absl::StrCat("the engine hangs: it has made no progress for ",
                                               stalled_ms_ / 1000, " s (--watchdog-seconds)"));
  }
  if (snapshot.failed) return absl::UnavailableError("the engine failed; nothing more can run");
  return absl::OkStatus();
}

void Server::PublishHealth(const Health& health) {
  if (health_published_ == health) return;
  health_published_ = health;
  ready_.store(health.ready, std::memory_order_relaxed);
  for (GrpcListener* listener : Listeners()) listener->SetHealth(health);
}

void Server::Drain(absl::Duration patience) {
  PublishHealth({.live = health_published_->live, .ready = false});
  const Serving* serving = slot_.get();
  const bool drained =
      serving == nullptr || DrainEngine(*serving->model->engine, absl::Now() + patience);
  if (!drained && !hung_) {
    spdlog::warn("requests still run after {}; cancelling them", absl::FormatDuration(patience));
  }
  // A hanging engine has no hot set to give.
  if (serving != nullptr && serving->model->hot_set_keeper != nullptr && !hung_) {
    serving->model->hot_set_keeper->Save().IgnoreError();  // which it has logged
  }
  // The health port last: as long as calls end, it says that they do.
  for (GrpcListener* listener :
       {admin_.get(), api_.get(), gateway_.get(), health_listener_.get()}) {
    if (listener != nullptr) listener->Shutdown(drained ? kCloseGrace : absl::ZeroDuration());
  }
  // The engine is destroyed next, which waits for its step: long enough to see whether that hangs.
  const absl::Duration watched = absl::Seconds(options_.watchdog_seconds) + 2 * kTick;
  if (serving != nullptr) DrainEngine(*serving->model->engine, absl::Now() + watched);
}

bool Server::DrainEngine(engine::Engine& engine, absl::Time deadline) {
  while (true) {
    if (hung_) {
      engine.Abandon(absl::UnavailableError("the server hangs and is being ended; try another"));
      return engine.Drain(absl::Now() + kHangNotice);
    }
    const absl::Time tick = absl::Now() + kTick;
    if (engine.Drain(std::min(deadline, tick))) return true;
    if (deadline <= tick) return false;
  }
}

}  // namespace moed::server
