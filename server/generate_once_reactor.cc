#include "server/generate_once_reactor.h"

#include <utility>

#include "server/grpc_status.h"
#include "server/submit.h"
#include "server/translate_response.h"

namespace moed::server {
namespace {

// Of tokens and alternatives, about 20 MB on the wire: more belongs in a stream.
constexpr size_t kMaxResponseTokens = 1 << 20;

}  // namespace

grpc::ServerUnaryReactor* GenerateOnceReactor::Start(grpc::CallbackServerContext* context,
                                                     const Serving& serving,
                                                     absl::StatusOr<engine::Request> request,
                                                     v1::GenerateOnceResponse* response) {
  if (!request.ok()) {
    serving.metrics.CountEnd(static_cast<grpc::StatusCode>(request.status().code()));
    grpc::ServerUnaryReactor* refused = context->DefaultReactor();
    refused->Finish(ToGrpcStatus(request.status(), *context));
    return refused;
  }
  std::shared_ptr<GenerateOnceReactor> reactor(
      new GenerateOnceReactor(context, serving, *request, response));
  reactor->self_ = reactor;
  const absl::Status status = Submit(*serving.model, *context, *std::move(request), reactor);
  if (!status.ok()) {
    absl::MutexLock lock(&reactor->mutex_);
    reactor->End(status);
  }
  return reactor.get();
}

GenerateOnceReactor::GenerateOnceReactor(grpc::CallbackServerContext* context,
                                         const Serving& serving, const engine::Request& request,
                                         v1::GenerateOnceResponse* response)
    : context_(context),
      engine_(serving.model->engine.get()),
      metrics_(&serving.metrics),
      request_id_(request.id),
      with_logprobs_(request.sampling.logprobs >= 0),
      first_prompt_token_(request.prompt.front()),
      timer_(metrics_, request.n),
      response_(response) {
  response->set_request_id(request_id_);
  for (int i = 0; i < request.n; ++i) response->add_completions()->set_index(i);
}

void GenerateOnceReactor::OnPromptLogprobs(std::vector<std::vector<model::TokenLogprob>> logprobs) {
  absl::MutexLock lock(&mutex_);
  if (finished_) return;
  FillPromptLogprobs(first_prompt_token_, logprobs, response_->mutable_prompt_logprobs());
}

void GenerateOnceReactor::OnDelta(engine::Delta delta) {
  timer_.OnDelta(delta);
  bool overflow = false;
  {
    absl::MutexLock lock(&mutex_);
    if (finished_) return;
    v1::Completion* completion = response_->mutable_completions(delta.index);
    completion->mutable_text()->append(delta.text);
    AppendTokens(delta.tokens, with_logprobs_, completion->mutable_tokens());
    for (const engine::TokenWithLogprobs& token : delta.tokens) {
      response_tokens_ += 1 + token.top.size();
    }
    overflow = response_tokens_ > kMaxResponseTokens;
    if (overflow) {
      End(absl::ResourceExhaustedError(
          "the completion is too large for one message; use the streaming Generate"));
    }
  }
  if (overflow) engine_->Cancel(request_id_);
}

void GenerateOnceReactor::OnSequenceFinish(engine::SequenceFinish finish) {
  absl::MutexLock lock(&mutex_);
  if (finished_) return;
  FillSequenceFinish(finish, response_->mutable_completions(finish.index)->mutable_finish());
}

void GenerateOnceReactor::OnDone(const absl::Status& status, const engine::Usage& usage) {
  if (status.ok()) timer_.OnDone(usage);
  absl::MutexLock lock(&mutex_);
  if (finished_) return;
  FillUsage(usage, response_->mutable_usage());
  End(PublicStatus(request_id_, status));
}

void GenerateOnceReactor::OnCancel() {
  {
    absl::MutexLock lock(&mutex_);
    if (finished_) return;
    End(absl::CancelledError("the client cancelled the call or its deadline passed"));
  }
  engine_->Cancel(request_id_);
}

void GenerateOnceReactor::OnDone() { self_.reset(); }

void GenerateOnceReactor::End(const absl::Status& status) {
  finished_ = true;
  metrics_->CountEnd(static_cast<grpc::StatusCode>(status.code()));
  Finish(ToGrpcStatus(status, *context_));
}

}  // namespace moed::server
