// Decides for every call, before its message is read, whether its client may make it: AccessOf says
// what the method needs, ApiKeys what the client's key gives. gRPC calls it for every method of a
// listener, known or not, on its own threads.
#pragma once

#include <grpcpp/security/auth_metadata_processor.h>

#include "server/api_keys.h"

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

}  // namespace moed::server
