#include "client/generate_reader.h"

#include <utility>

#include "client/grpc_status.h"

namespace moed::client {

void GenerateReader::Start(v1::Inference::Stub& stub, v1::GenerateRequest request,
                           std::shared_ptr<Call> call, Client::OnResponse on_response,
                           Client::OnDone on_done) {
  auto* reader = new GenerateReader(std::move(request), std::move(call), std::move(on_response),
                                    std::move(on_done));
  stub.async()->Generate(reader->call_->context(), &reader->request_, reader);
  reader->StartRead(&reader->response_);
  reader->StartCall();
}

GenerateReader::GenerateReader(v1::GenerateRequest request, std::shared_ptr<Call> call,
                               Client::OnResponse on_response, Client::OnDone on_done)
    : request_(std::move(request)),
      call_(std::move(call)),
      on_response_(std::move(on_response)),
      on_done_(std::move(on_done)) {}

void GenerateReader::OnReadDone(bool ok) {
  if (!ok) return;  // OnDone follows
  on_response_(response_);
  StartRead(&response_);
}

void GenerateReader::OnDone(const grpc::Status& status) {
  const Client::OnDone on_done = on_done_;
  const absl::Status end = ToStatus(status);
  // First, for who hears of the end may let go of the client: the last reference to a channel must
  // not be dropped here, on a thread that gRPC would have to wait for.
  delete this;
  on_done(end);
}

}  // namespace moed::client
