// The reactor of a streaming call that ends before it has begun.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "server/grpc_status.h"

namespace moed::server {

template <typename Response>
class RefusedStream final : public grpc::ServerWriteReactor<Response> {
 public:
  // Deletes itself.
  static grpc::ServerWriteReactor<Response>* Start(grpc::CallbackServerContext* context,
                                                   const absl::Status& status) {
    return new RefusedStream(ToGrpcStatus(status, *context));
  }
  void OnDone() override { delete this; }

 private:
  explicit RefusedStream(const grpc::Status& status) { this->Finish(status); }
};

}  // namespace moed::server
