#include "server/generate_reactor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/grpc_status.h"
#include "server/refused_stream.h"
#include "server/submit.h"

namespace moed::server {
namespace {

StreamBuffer::Options BufferOptions(const engine::Request& request) {
  return {.with_logprobs = request.sampling.logprobs >= 0,
          .first_prompt_token = request.prompt.front()};
}

}  // namespace

GenerateWriter* GenerateReactor::Start(grpc::CallbackServerContext* context, const Serving& serving,
                                       absl::StatusOr<engine::Request> request) {
  if (!request.ok()) {
    serving.metrics.CountEnd(static_cast<grpc::StatusCode>(request.status().code()));
    return RefusedStream<v1::GenerateResponse>::Start(context, request.status());
  }
  std::shared_ptr<GenerateReactor> reactor(new GenerateReactor(context, serving, *request));
  reactor->self_ = reactor;
  const absl::Status status = Submit(*serving.model, *context, *std::move(request), reactor);
  if (!status.ok()) {
    absl::MutexLock lock(&reactor->mutex_);
    reactor->Close(status);
    reactor->Pump();
  }
  return reactor.get();
}

GenerateReactor::GenerateReactor(grpc::CallbackServerContext* context, const Serving& serving,
                                 const engine::Request& request)
    : context_(context),
      engine_(serving.model->engine.get()),
      metrics_(&serving.metrics),
      request_id_(request.id),
      timer_(metrics_, request.n),
      buffer_(BufferOptions(request)) {
  outgoing_.set_request_id(request_id_);
}

void GenerateReactor::OnPromptLogprobs(std::vector<std::vector<model::TokenLogprob>> logprobs) {
  absl::MutexLock lock(&mutex_);
  if (closed_) return;
  buffer_.PushPromptLogprobs(std::move(logprobs));
  Pump();
}

void GenerateReactor::OnDelta(engine::Delta delta) {
  timer_.OnDelta(delta);
  bool overflow = false;
  {
    absl::MutexLock lock(&mutex_);
    if (closed_) return;
    overflow = !buffer_.Push(std::move(delta));
    if (overflow) {
      Close(absl::ResourceExhaustedError(
          "the client reads too slowly: the output waiting for it passed the limit of a stream"));
    }
    Pump();
  }
  if (overflow) engine_->Cancel(request_id_);
}

void GenerateReactor::OnSequenceFinish(engine::SequenceFinish finish) {
  absl::MutexLock lock(&mutex_);
  if (!closed_) buffer_.PushSequenceFinish(std::move(finish));
}

void GenerateReactor::OnDone(const absl::Status& status, const engine::Usage& usage) {
  if (status.ok()) timer_.OnDone(usage);
  absl::MutexLock lock(&mutex_);
  if (closed_) return;
  if (status.ok()) buffer_.PushFinished(usage);
  result_ = PublicStatus(request_id_, status);
  Pump();
}

void GenerateReactor::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mutex_);
  writing_ = false;
  if (!ok && !closed_) Close(absl::CancelledError("the client is gone"));
  Pump();
}

void GenerateReactor::OnCancel() {
  {
    absl::MutexLock lock(&mutex_);
    if (closed_ || finished_) return;
    Close(absl::CancelledError("the client cancelled the call or its deadline passed"));
    Pump();
  }
  engine_->Cancel(request_id_);
}

void GenerateReactor::OnDone() { self_.reset(); }

void GenerateReactor::Close(const absl::Status& status) {
  closed_ = true;
  buffer_.Clear();
  result_ = status;
}

void GenerateReactor::Pump() {
  if (writing_ || finished_) return;
  if (buffer_.Take(&outgoing_)) {
    writing_ = true;
    grpc::WriteOptions options;
    // More is at hand: let the transport gather messages into one packet.
    if (!buffer_.empty() || result_) options.set_buffer_hint();
    StartWrite(&outgoing_, options);
    return;
  }
  if (!result_) return;
  finished_ = true;
  metrics_->CountEnd(static_cast<grpc::StatusCode>(result_->code()));
  Finish(ToGrpcStatus(*result_, *context_));
}

}  // namespace moed::server
