#include "server/generate_reactor.h"

#include <utility>

#include "server/grpc_status.h"
#include "server/refused_stream.h"
#include "server/stream_buffer.h"
#include "server/submit.h"
#include "server/vllm_stream_buffer.h"

namespace moed::server {
template <typename Buffer>
auto GenerateReactor<Buffer>::Start(grpc::CallbackServerContext* context, const Serving& serving,
                                    absl::StatusOr<engine::Request> request) -> Writer* {
  if (!request.ok()) {
    serving.metrics.CountEnd(static_cast<grpc::StatusCode>(request.status().code()));
    return RefusedStream<Response>::Start(context, request.status());
  }
  const typename Buffer::Options options = Buffer::OptionsFor(*request);
  return Start(context, serving, *std::move(request), options);
}

template <typename Buffer>
auto GenerateReactor<Buffer>::Start(grpc::CallbackServerContext* context, const Serving& serving,
                                    engine::Request request,
                                    const typename Buffer::Options& options) -> Writer* {
  std::shared_ptr<GenerateReactor> reactor(new GenerateReactor(context, serving, request, options));
  reactor->self_ = reactor;
  const absl::Status status = Submit(*serving.model, *context, std::move(request), reactor);
  if (!status.ok()) {
    absl::MutexLock lock(&reactor->mutex_);
    reactor->Close(status);
    reactor->Pump();
  }
  return reactor.get();
}

template <typename Buffer>
GenerateReactor<Buffer>::GenerateReactor(grpc::CallbackServerContext* context,
                                         const Serving& serving, const engine::Request& request,
                                         const typename Buffer::Options& options)
    : context_(context),
      engine_(serving.model->engine.get()),
      metrics_(&serving.metrics),
      request_id_(request.id),
      timer_(metrics_, request.n),
      buffer_(options) {}

template <typename Buffer>
void GenerateReactor<Buffer>::OnPromptLogprobs(
    std::vector<std::vector<model::TokenLogprob>> logprobs) {
  absl::MutexLock lock(&mutex_);
  if (closed_) return;
  buffer_.PushPromptLogprobs(std::move(logprobs));
  Pump();
}

template <typename Buffer>
void GenerateReactor<Buffer>::OnDelta(engine::Delta delta) {
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

template <typename Buffer>
void GenerateReactor<Buffer>::OnSequenceFinish(engine::SequenceFinish finish) {
  absl::MutexLock lock(&mutex_);
  if (closed_) return;
  buffer_.PushSequenceFinish(std::move(finish));
  Pump();
}

template <typename Buffer>
void GenerateReactor<Buffer>::OnDone(const absl::Status& status, const engine::Usage& usage) {
  if (status.ok()) timer_.OnDone(usage);
  absl::MutexLock lock(&mutex_);
  if (closed_) return;
  if (status.ok()) buffer_.PushFinished(usage);
  result_ = PublicStatus(request_id_, status);
  Pump();
}

template <typename Buffer>
void GenerateReactor<Buffer>::OnWriteDone(bool ok) {
  bool gone = false;
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    gone = !ok && !closed_;
    if (gone) Close(absl::CancelledError("the client is gone"));
    Pump();
  }
  // OnCancel, if it comes after, takes the call for closed.
  if (gone) engine_->Cancel(request_id_);
}

template <typename Buffer>
void GenerateReactor<Buffer>::OnCancel() {
  {
    absl::MutexLock lock(&mutex_);
    if (closed_ || finished_) return;
    Close(absl::CancelledError("the client cancelled the call or its deadline passed"));
    Pump();
  }
  engine_->Cancel(request_id_);
}

template <typename Buffer>
void GenerateReactor<Buffer>::OnDone() {
  self_.reset();
}

template <typename Buffer>
void GenerateReactor<Buffer>::Close(const absl::Status& status) {
  closed_ = true;
  buffer_.Clear();
  result_ = status;
}

template <typename Buffer>
void GenerateReactor<Buffer>::Pump() {
  if (writing_ || finished_) return;
  if (buffer_.Take(&outgoing_)) {
    writing_ = true;
    grpc::WriteOptions options;
    // More is at hand: let the transport gather messages into one packet.
    if (!buffer_.empty() || result_) options.set_buffer_hint();
    this->StartWrite(&outgoing_, options);
    return;
  }
  if (!result_) return;
  finished_ = true;
  metrics_->CountEnd(static_cast<grpc::StatusCode>(result_->code()));
  this->Finish(ToGrpcStatus(*result_, *context_));
}

template class GenerateReactor<StreamBuffer>;
template class GenerateReactor<VllmStreamBuffer>;

}  // namespace moed::server
