#include "server/inference_service.h"

#include "server/finish_unary.h"
#include "server/generate_once_reactor.h"
#include "server/generate_reactor.h"
#include "server/refused_stream.h"
#include "server/stream_buffer.h"
#include "server/translate_request.h"
#include "server/translate_response.h"

namespace moed::server {
grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  const auto serving = slot_.Require();
  if (!serving.ok()) {
    return RefusedStream<v1::GenerateResponse>::Start(context, serving.status());
  }
  return GenerateReactor<StreamBuffer>::Start(context, **serving,
                                              ToEngineRequest(*request, *(*serving)->model));
}

grpc::ServerUnaryReactor* InferenceService::GenerateOnce(grpc::CallbackServerContext* context,
                                                         const v1::GenerateRequest* request,
                                                         v1::GenerateOnceResponse* response) {
  const auto serving = slot_.Require();
  if (!serving.ok()) return FinishUnary(context, serving.status());
  return GenerateOnceReactor::Start(context, **serving,
                                    ToEngineRequest(*request, *(*serving)->model), response);
}

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Chat(
    grpc::CallbackServerContext* context, const v1::ChatRequest* request) {
  const auto serving = slot_.Require();
  if (!serving.ok()) {
    return RefusedStream<v1::GenerateResponse>::Start(context, serving.status());
  }
  return GenerateReactor<StreamBuffer>::Start(context, **serving,
                                              ToEngineRequest(*request, *(*serving)->model));
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  const auto serving = slot_.Require();
  if (!serving.ok()) return FinishUnary(context, serving.status());
  const auto ids = ToTokenIds(*request, *(*serving)->model);
  if (ids.ok()) response->mutable_token_ids()->Add(ids->begin(), ids->end());
  return FinishUnary(context, ids.status());
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  const auto serving = slot_.Require();
  if (!serving.ok()) return FinishUnary(context, serving.status());
  auto text = ToText(*request, *(*serving)->model);
  if (text.ok()) response->set_text(*std::move(text));
  return FinishUnary(context, text.status());
}

grpc::ServerUnaryReactor* InferenceService::GetModel(grpc::CallbackServerContext* context,
                                                     const v1::GetModelRequest* request,
                                                     v1::GetModelResponse* response) {
  const auto serving = slot_.Require();
  if (!serving.ok()) return FinishUnary(context, serving.status());
  const ServedModel& model = *(*serving)->model;
  const absl::Status status = CheckModelName(model, request->model());
  if (status.ok()) FillModel(model, response);
  return FinishUnary(context, status);
}

}  // namespace moed::server
