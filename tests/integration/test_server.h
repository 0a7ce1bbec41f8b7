// A whole server inside the test, reached by real clients over a loopback socket.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "proto/grpc/health/v1/health.grpc.pb.h"
#include "proto/moed/v1/admin.grpc.pb.h"
#include "proto/moed/v1/experts.grpc.pb.h"
#include "proto/moed/v1/inference.grpc.pb.h"
#include "server/server.h"
#include "tests/integration/calls.h"

namespace moed::server {

class TestServer {
 public:
  // Any ports of `options` become 0, and there is an admin port. Does not wait for the loader.
  // `credentials` are those of its own clients.
  TestServer(
      Options options, ModelLoader loader,
      std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials());
  ~TestServer();

  // Until GetModel answers.
  void WaitUntilLoaded();
  // Asks the server to stop without waiting for it.
  void RequestStop();
  // What Run returned.
  absl::Status Stop();

  int port() const { return server_->port(); }
  int metrics_port() const { return server_->metrics_port(); }
  int health_port() const { return server_->health_port(); }
  int gateway_port() const { return server_->gateway_port(); }
  int admin_port() const { return server_->admin_port(); }
  void Reload() { server_->Reload(); }
  std::shared_ptr<grpc::Channel> NewChannel(
      const std::shared_ptr<grpc::ChannelCredentials>& credentials =
          grpc::InsecureChannelCredentials()) const;

  v1::Inference::Stub& inference() { return *inference_; }
  v1::Experts::Stub& experts() { return *experts_; }
  v1::Admin::Stub& admin() { return *admin_; }
  grpc::health::v1::Health::Stub& health() { return *health_; }

  v1::ServingStats Stats();
  grpc::health::v1::HealthCheckResponse::ServingStatus HealthOf(const std::string& service);

 private:
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Experts::Stub> experts_;
  std::unique_ptr<v1::Admin::Stub> admin_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
  absl::Notification stop_;
  absl::Status run_status_;
  std::thread run_thread_;
};

// What an HTTP server on loopback answers to `request`, headers and body; empty if that fails.
std::string HttpAnswer(int port, const std::string& request);
// The body of a GET.
std::string HttpGet(int port, const std::string& path);

}  // namespace moed::server
