// Reads one Generate stream on gRPC's threads. Owns itself from Start until the end of the call.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>

#include "client/client.h"

namespace moed::client {

class GenerateReader : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  static void Start(v1::Inference::Stub& stub, v1::GenerateRequest request,
                    std::shared_ptr<Call> call, Client::OnResponse on_response,
                    Client::OnDone on_done);

 private:
  GenerateReader(v1::GenerateRequest request, std::shared_ptr<Call> call,
                 Client::OnResponse on_response, Client::OnDone on_done);
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  const v1::GenerateRequest request_;
  const std::shared_ptr<Call> call_;
  const Client::OnResponse on_response_;
  const Client::OnDone on_done_;
  v1::GenerateResponse response_;
};

}  // namespace moed::client
