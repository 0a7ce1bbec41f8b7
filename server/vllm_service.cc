#include "server/vllm_service.h"

#include <utility>

#include "absl/time/clock.h"
#include "server/finish_unary.h"
#include "server/generate_reactor.h"
#include "server/refused_stream.h"
#include "server/tokenizer_stream.h"
#include "server/translate_vllm_request.h"
#include "server/translate_vllm_response.h"
#include "server/vllm_stream_buffer.h"

namespace moed::server {

namespace vllm_api = vllm::grpc::engine;
using smg::grpc::common::GetTokenizerChunk;
using smg::grpc::common::GetTokenizerRequest;

VllmService::VllmService(const ModelSlot* slot, const std::atomic<bool>* ready)
    : slot_(*slot), ready_(*ready), start_(absl::Now()) {}

grpc::ServerWriteReactor<vllm_api::GenerateResponse>* VllmService::Generate(
    grpc::CallbackServerContext* context, const vllm_api::GenerateRequest* request) {
  using Reactor = GenerateReactor<VllmStreamBuffer>;
  const auto serving = slot_.Require();
  if (!serving.ok()) {
    return RefusedStream<vllm_api::GenerateResponse>::Start(context, serving.status());
  }
  absl::StatusOr<engine::Request> translated = ToEngineRequest(*request, *(*serving)->model);
  if (!translated.ok()) return Reactor::Start(context, **serving, std::move(translated));
  VllmStreamBuffer::Options options = VllmStreamBuffer::OptionsFor(*translated);
  options.stream = request->stream();
  return Reactor::Start(context, **serving, *std::move(translated), options);
}

grpc::ServerUnaryReactor* VllmService::Abort(grpc::CallbackServerContext* context,
                                             const vllm_api::AbortRequest* request,
                                             vllm_api::AbortResponse* /*response*/) {
  const auto serving = slot_.Require();
  if (!serving.ok()) return FinishUnary(context, serving.status());
  for (const std::string& id : request->request_ids()) (*serving)->model->engine->Cancel(id);
  return FinishUnary(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* VllmService::HealthCheck(grpc::CallbackServerContext* context,
                                                   const vllm_api::HealthCheckRequest* /*request*/,
                                                   vllm_api::HealthCheckResponse* response) {
  const bool ready = ready_.load(std::memory_order_relaxed);
  response->set_healthy(ready);
  response->set_message(ready ? "serving" : "loading, draining or without progress");
  return FinishUnary(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* VllmService::GetModelInfo(
    grpc::CallbackServerContext* context, const vllm_api::GetModelInfoRequest* /*request*/,
    vllm_api::GetModelInfoResponse* response) {
  const auto serving = slot_.Require();
  if (serving.ok()) FillModelInfo(*(*serving)->model, response);
  return FinishUnary(context, serving.status());
}

grpc::ServerUnaryReactor* VllmService::GetServerInfo(
    grpc::CallbackServerContext* context, const vllm_api::GetServerInfoRequest* /*request*/,
    vllm_api::GetServerInfoResponse* response) {
  const auto serving = slot_.Require();
  if (serving.ok()) {
    const ServedModel& model = *(*serving)->model;
    FillServerInfo(model, model.engine->Snapshot(), absl::ToDoubleSeconds(absl::Now() - start_),
                   response);
  }
  return FinishUnary(context, serving.status());
}

grpc::ServerUnaryReactor* VllmService::GetLoads(grpc::CallbackServerContext* context,
                                                const vllm_api::GetLoadsRequest* /*request*/,
                                                vllm_api::GetLoadsResponse* response) {
  const auto serving = slot_.Require();
  if (serving.ok()) {
    const ServedModel& model = *(*serving)->model;
    FillLoads(model, model.engine->Snapshot(), absl::Now(), response);
  }
  return FinishUnary(context, serving.status());
}

grpc::ServerWriteReactor<GetTokenizerChunk>* VllmService::GetTokenizer(
    grpc::CallbackServerContext* context, const GetTokenizerRequest* /*request*/) {
  const auto serving = slot_.Require();
  if (!serving.ok()) return RefusedStream<GetTokenizerChunk>::Start(context, serving.status());
  const ServedModel& model = *(*serving)->model;
  if (!model.tokenizer_bundle) {
    return RefusedStream<GetTokenizerChunk>::Start(
        context, absl::FailedPreconditionError("the checkpoint has no tokenizer.json"));
  }
  return new TokenizerStream(*model.tokenizer_bundle);
}

}  // namespace moed::server
