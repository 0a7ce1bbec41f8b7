// Decides for every call, before its message is read, whether its client may make it: AccessOf says
// what the method needs, ApiKeys what the client's key gives. gRPC calls it for every method of a
// listener, known or not, on its own threads.
#pragma once

#include <grpcpp/security/auth_metadata_processor.h>
#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "absl/time/time.h"
#include "server/api_keys.h"
#include "server/tls_credentials.h"

namespace moed::server {

class Authorizer final : public grpc::AuthMetadataProcessor {
 public:
  // `keys` outlives the listener.
  explicit Authorizer(const ApiKeys* keys) : keys_(*keys) {}

  bool IsBlocking() const override { return false; }
  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext* context,
                       OutputMetadata* consumed, OutputMetadata* response) override;

 private:
  const ApiKeys& keys_;
};

// Credentials of a listener whose calls must pass an Authorizer. Without TLS it refuses peers of
// other machines, for a key sent in plain text is no secret.
std::shared_ptr<grpc::ServerCredentials> MakeKeyedCredentials(const TlsFiles& tls,
                                                              absl::Duration reload_interval,
                                                              const ApiKeys* keys);

}  // namespace moed::server
