#include "server/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_builder.h>
#include <spdlog/spdlog.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/listen_address.h"

namespace moed::server {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(200);
// For what drained calls still have to write, and to end endless ones (Watch).
constexpr absl::Duration kCloseGrace = absl::Seconds(1);
// Of messages and buffers that clients can make gRPC hold at once.
constexpr size_t kGrpcMemoryBytes = size_t{256} << 20;
constexpr int kMaxStreamsPerConnection = 16384;
constexpr int kMaxMetadataBytes = 16 << 10;
// Clients and proxies ping as often as every 30 s, even idle; gRPC would refuse below 5 minutes.
constexpr int kMinClientPingMs = 10'000;
// Finds clients that vanished without closing.
constexpr int kKeepaliveMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 20'000;

void SetLimits(const Options& options, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  builder->SetMaxSendMessageSize(-1);
  builder->SetResourceQuota(grpc::ResourceQuota("moed").Resize(
      kGrpcMemoryBytes + static_cast<size_t>(options.max_message_bytes)));
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              kMinClientPingMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  // Two servers on one port would each get some of the connections, instead of an error.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
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

Server::Server(const Options& options) : options_(options), inference_(&slot_), experts_(&slot_) {}

Server::~Server() {
  if (grpc_server_ != nullptr) grpc_server_->Shutdown(absl::ToChronoTime(absl::Now()));
  if (loader_thread_.joinable()) loader_thread_.join();
}

absl::Status Server::Listen() {
  auto metrics = MetricsListener::Start(options_.host, options_.metrics_port, &slot_);
  if (!metrics.ok()) return metrics.status();
  metrics_ = *std::move(metrics);

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  SetLimits(options_, &builder);
  builder.RegisterService(&inference_);
  builder.RegisterService(&experts_);
  const std::string address = ListenAddress(options_.host, options_.port);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port_);
  grpc_server_ = builder.BuildAndStart();
  if (grpc_server_ == nullptr || port_ == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address,
                                               "; is the port in use? choose another with --port"));
  }
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
  grpc::HealthCheckServiceInterface* service = grpc_server_->GetHealthCheckService();
  service->SetServingStatus("", health.live);
  for (const char* name : {v1::Inference::service_full_name(), v1::Experts::service_full_name()}) {
    service->SetServingStatus(name, health.ready);
  }
}

void Server::Drain(absl::Duration patience) {
  PublishHealth({.live = health_published_->live, .ready = false});
  const Serving* serving = slot_.get();
  if (serving != nullptr && !serving->model->engine->Drain(absl::Now() + patience)) {
    spdlog::warn("requests still run after {}; cancelling them", absl::FormatDuration(patience));
  }
  grpc_server_->Shutdown(absl::ToChronoTime(absl::Now() + kCloseGrace));
}

}  // namespace moed::server
