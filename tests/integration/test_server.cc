#include "tests/integration/test_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace moed::server {

TestServer::TestServer(Options options, ModelLoader loader,
                       std::shared_ptr<grpc::ChannelCredentials> credentials) {
  options.port = 0;
  options.metrics_port = 0;
  options.admin_port = 0;
  auto server = Server::Create(options, std::move(loader));
  EXPECT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  const std::shared_ptr<grpc::Channel> channel = NewChannel(credentials);
  inference_ = v1::Inference::NewStub(channel);
  experts_ = v1::Experts::NewStub(channel);
  admin_ = v1::Admin::NewStub(grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->admin_port()),
                                                  grpc::InsecureChannelCredentials()));
  health_ = grpc::health::v1::Health::NewStub(channel);
  run_thread_ = std::thread([this] {
    run_status_ = server_->Run(
        [this](absl::Duration timeout) { return stop_.WaitForNotificationWithTimeout(timeout); });
  });
}

TestServer::~TestServer() { Stop().IgnoreError(); }

void TestServer::WaitUntilLoaded() {
  EXPECT_TRUE(Eventually([this] { return server_->loaded(); }));
}

void TestServer::RequestStop() {
  if (!stop_.HasBeenNotified()) stop_.Notify();
}

absl::Status TestServer::Stop() {
  RequestStop();
  if (run_thread_.joinable()) run_thread_.join();
  return run_status_;
}

std::shared_ptr<grpc::Channel> TestServer::NewChannel(
    const std::shared_ptr<grpc::ChannelCredentials>& credentials) const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // a connection of its own
  return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port()), credentials, arguments);
}

v1::ServingStats TestServer::Stats() {
  grpc::ClientContext context;
  v1::ExpertStats stats;
  EXPECT_TRUE(experts_->GetStats(&context, {}, &stats).ok());
  return stats.serving();
}

grpc::health::v1::HealthCheckResponse::ServingStatus TestServer::HealthOf(
    const std::string& service) {
  grpc::ClientContext context;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = health_->Check(&context, request, &response);
  return status.ok() ? response.status() : grpc::health::v1::HealthCheckResponse::UNKNOWN;
}

std::string HttpAnswer(int port, const std::string& request) {
  const int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string response;
  if (connect(socket_fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    send(socket_fd, request.data(), request.size(), MSG_NOSIGNAL);
    char buffer[4096];
    for (ssize_t got; (got = recv(socket_fd, buffer, sizeof(buffer), 0)) > 0;) {
      response.append(buffer, got);
    }
  }
  close(socket_fd);
  return response;
}

std::string HttpGet(int port, const std::string& path) {
  const std::string response = HttpAnswer(
      port,
      absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
  const size_t body = response.find("\r\n\r\n");
  return body == std::string::npos ? "" : response.substr(body + 4);
}

}  // namespace moed::server
