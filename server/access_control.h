// Who may reach what: the certificates and secrets of all listeners, read when the daemon starts
// and again when it is told to. Outlives the listeners.
#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/api_keys.h"
#include "server/basic_auth.h"
#include "server/options.h"

namespace moed::server {

class AccessControl {
 public:
  // FAILED_PRECONDITION, naming flags and remedy: certificates that do not hold (CheckTlsFiles), a
  // secret that would go over the network in plain text, an admin service without a key beyond
  // loopback; errors of ApiKeys and BasicAuth.
  static absl::StatusOr<std::unique_ptr<AccessControl>> Load(const Options& options);

  // For --port: TLS and keys as the options say.
  const std::shared_ptr<grpc::ServerCredentials>& api() const { return api_; }
  // For --admin-port. On loopback plain text, and a key if there is a file of them; elsewhere TLS
  // and a key.
  const std::shared_ptr<grpc::ServerCredentials>& admin() const { return admin_; }
  // For --metrics-port. Null: everybody.
  const BasicAuth* metrics_users() const { return metrics_users_.get(); }

  // Reads keys and users again. What is wrong goes to the log, and the old ones stay. Certificates
  // are looked at by themselves. Any thread.
  void Reload();

 private:
  explicit AccessControl(const Options& options) : options_(options) {}
  absl::Status LoadApi();
  absl::Status LoadAdmin();
  absl::Status LoadMetrics();

  const Options options_;
  std::unique_ptr<ApiKeys> api_keys_;    // null: none are asked for
  std::unique_ptr<ApiKeys> admin_keys_;  // likewise
  std::unique_ptr<BasicAuth> metrics_users_;
  std::shared_ptr<grpc::ServerCredentials> api_;
  std::shared_ptr<grpc::ServerCredentials> admin_;
};

}  // namespace moed::server
