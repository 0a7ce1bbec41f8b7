// One gRPC server on one address: the services that are reachable there, health, and the limits
// that every listener shares. The daemon has one for its API and, if asked, others that show less
// of it. Owned by Server; Shutdown and SetHealth from one thread.
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/call_log.h"
#include "server/health.h"

namespace moed::server {

struct GrpcListenerOptions {
  std::string address;
  std::string flag;  // that sets the port, for messages
  std::shared_ptr<grpc::ServerCredentials> credentials;
  std::vector<grpc::Service*> services;  // outlive the listener
  bool reflection = false;
  int64_t max_message_bytes = 64 << 20;
  int64_t max_metadata_bytes = 16 << 10;
  // Connections are told to go after this long, jittered by 10 %, so that clients spread again; the
  // calls on them end in peace.
  absl::Duration max_connection_age = absl::InfiniteDuration();
};

class GrpcListener {
 public:
  // UNAVAILABLE, naming address and flag, if it cannot listen there.
  static absl::StatusOr<std::unique_ptr<GrpcListener>> Start(const GrpcListenerOptions& options);
  ~GrpcListener();

  int port() const { return port_; }
  void SetHealth(const Health& health);
  // Waits until no call is left that ends by itself, at most `patience`; what still runs then, and
  // endless calls (Watch), are cut off.
  void Shutdown(absl::Duration patience);

 private:
  GrpcListener() = default;

  int port_ = 0;
  std::shared_ptr<CallCounter> calls_;
  grpc::CallbackGenericService unimplemented_;  // a server must have a service beside health
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace moed::server
