#include "server/server.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/listen_address.h"

namespace moed::server {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(200);
// For what drained calls still have to write.
constexpr absl::Duration kCloseGrace = absl::Seconds(5);

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
    : options_(options), inference_(&slot_), experts_(&slot_), vllm_(&slot_, &ready_) {}

Server::~Server() {
  api_.reset();  // no call may outlive what it runs on
  if (loader_thread_.joinable()) loader_thread_.join();
}

absl::Status Server::Listen() {
  auto metrics = MetricsListener::Start(options_.host, options_.metrics_port, &slot_);
  if (!metrics.ok()) return metrics.status();
  metrics_ = *std::move(metrics);

  GrpcListenerOptions api;
  api.address = ListenAddress(options_.host, options_.port);
  api.flag = "--port";
  api.credentials = grpc::InsecureServerCredentials();
  api.services = {&inference_, &experts_, &vllm_};
  api.reflection = true;
  api.max_message_bytes = options_.max_message_bytes;
  auto listener = GrpcListener::Start(api);
  if (!listener.ok()) return listener.status();
  api_ = *std::move(listener);
  PublishHealth(EvaluateHealth(/*snapshot=*/nullptr, absl::Now()));
  return absl::OkStatus();
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
  absl::Status status;
  bool stopping = false;
  while (status.ok() && !stopping) {
    stopping = stop_requested(kTick);
    status = CheckModel();  // also after the request to stop: a failure must not pass for a drain
  }
  if (status.ok()) spdlog::info("asked to stop; draining");
  Drain(status.ok() ? absl::Seconds(options_.drain_seconds) : absl::ZeroDuration());
  return status;
}

absl::Status Server::CheckModel() {
  {
    absl::MutexLock lock(&load_mutex_);
    if (!load_status_.ok()) return load_status_;
  }
  const Serving* serving = slot_.get();
  if (serving == nullptr) return absl::OkStatus();
  const engine::EngineSnapshot snapshot = serving->model->engine->Snapshot();
  const absl::Time now = absl::Now();
  PublishHealth(EvaluateHealth(&snapshot, now));
  activity_.Update(snapshot, now);
  if (snapshot.failed) return absl::UnavailableError("the engine failed; nothing more can run");
  return absl::OkStatus();
}

void Server::PublishHealth(const Health& health) {
  if (health_published_ == health) return;
  health_published_ = health;
  ready_.store(health.ready, std::memory_order_relaxed);
  api_->SetHealth(health);
}

void Server::Drain(absl::Duration patience) {
  PublishHealth({.live = health_published_->live, .ready = false});
  const Serving* serving = slot_.get();
  const bool drained = serving == nullptr || serving->model->engine->Drain(absl::Now() + patience);
  if (!drained) {
    spdlog::warn("requests still run after {}; cancelling them", absl::FormatDuration(patience));
  }
  api_->Shutdown(drained ? kCloseGrace : absl::ZeroDuration());
}

}  // namespace moed::server
