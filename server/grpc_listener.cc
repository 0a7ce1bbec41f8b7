#include "server/grpc_listener.h"

#include <google/protobuf/message.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/grpc/health/v1/health.pb.h"
#include "proto/moed/v1/experts.grpc.pb.h"
#include "proto/moed/v1/inference.grpc.pb.h"
#include "proto/vllm/engine.grpc.pb.h"
#include "server/sever_connections.h"

namespace moed::server {
namespace {

// Of messages and buffers that clients can make gRPC hold at once.
constexpr size_t kGrpcMemoryBytes = size_t{256} << 20;
constexpr int kMaxStreamsPerConnection = 16384;
// Clients and proxies ping as often as every 30 s, even idle; gRPC would refuse below 5 minutes.
constexpr int kMinClientPingMs = 10'000;
// Finds clients that vanished without closing.
constexpr int kKeepaliveMs = 60'000;
constexpr int kKeepaliveTimeoutMs = 20'000;
// For calls that arrive while the last ones end. A connection whose client does not read would hold
// up the shutdown for as long as it may, so it may not for long.
constexpr absl::Duration kCloseGrace = absl::Milliseconds(50);
// Clients that are active hear UNAVAILABLE from the services if their connections stay for a pause
// between their calls.
constexpr absl::Duration kQuiet = absl::Milliseconds(200);

// What the health service knows of beside the process. The last is what llm-d's health checks of
// vLLM ask for.
constexpr const char* kReadyNames[] = {v1::Inference::service_full_name(),
                                       v1::Experts::service_full_name(),
                                       vllm::grpc::engine::VllmEngine::service_full_name(),
                                       "/vllm.grpc.engine.VllmEngine/HealthCheck"};

// gRPC's reflection library adds itself to every server of the process by being linked.
class WithoutReflection final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments* /*arguments*/) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    const std::string reflection = grpc::reflection::ProtoServerReflectionPlugin().name();
    std::erase_if(*plugins, [&](const auto& plugin) { return plugin->name() == reflection; });
  }
};

int IntMilliseconds(absl::Duration duration) {
  return static_cast<int>(
      std::min<int64_t>(absl::ToInt64Milliseconds(duration), std::numeric_limits<int>::max()));
}

void SetLimits(const GrpcListenerOptions& options, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  builder->SetMaxSendMessageSize(-1);
  builder->SetResourceQuota(grpc::ResourceQuota("moed").Resize(
      kGrpcMemoryBytes + static_cast<size_t>(options.max_message_bytes)));
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE,
                              static_cast<int>(options.max_metadata_bytes));
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              kMinClientPingMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  // Two servers on one port would each get some of the connections, instead of an error.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  if (options.max_connection_age < absl::InfiniteDuration()) {
    builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                                IntMilliseconds(options.max_connection_age));
    // The calls that run on it may end first, however long they are: a drain's patience bounds
    // them.
    builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
                                std::numeric_limits<int>::max());
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcListener>> GrpcListener::Start(
    const GrpcListenerOptions& options) {
  std::unique_ptr<GrpcListener> listener(new GrpcListener);
  listener->calls_ = std::make_shared<CallCounter>();
  // gRPC serves health without its descriptors; reflection must have them to describe it.
  google::protobuf::LinkMessageReflection<grpc::health::v1::HealthCheckRequest>();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  SetLimits(options, &builder);
  if (!options.reflection) builder.SetOption(std::make_unique<WithoutReflection>());
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> observers;
  observers.push_back(std::make_unique<CallLog>(listener->calls_));
  builder.experimental().SetInterceptorCreators(std::move(observers));
  for (grpc::Service* service : options.services) builder.RegisterService(service);
  if (options.services.empty()) {
    builder.RegisterCallbackGenericService(&listener->unimplemented_);
  }
  builder.AddListeningPort(options.address, options.credentials, &listener->port_);
  listener->server_ = builder.BuildAndStart();
  if (listener->server_ == nullptr || listener->port_ == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options.address,
                                               "; is the port in use? choose another with ",
                                               options.flag));
  }
  return listener;
}

GrpcListener::~GrpcListener() { Shutdown(absl::ZeroDuration()); }

void GrpcListener::SetHealth(const Health& health) {
  grpc::HealthCheckServiceInterface* service = server_->GetHealthCheckService();
  service->SetServingStatus("", health.live);
  for (const char* name : kReadyNames) service->SetServingStatus(name, health.ready);
}

void GrpcListener::Shutdown(absl::Duration patience) {
  if (server_ == nullptr) return;
  if (calls_->WaitUntilIdle(kQuiet, patience)) SeverConnections(port_);
  server_->Shutdown(absl::ToChronoTime(absl::Now() + kCloseGrace));
}

}  // namespace moed::server
