#include "server/watch_reactor.h"

#include <utility>

#include "absl/time/clock.h"

namespace moed::server {

WatchReactor* WatchReactor::Start(absl::Duration interval,
                                  std::function<void(v1::ExpertStats*)> fill,
                                  std::function<void()> ended) {
  auto* reactor = new WatchReactor(interval, std::move(fill), std::move(ended));
  reactor->Write();
  return reactor;
}

WatchReactor::WatchReactor(absl::Duration interval, std::function<void(v1::ExpertStats*)> fill,
                           std::function<void()> ended)
    : interval_(interval), fill_(std::move(fill)), ended_(std::move(ended)) {}

void WatchReactor::Write() {
  message_.Clear();
  fill_(&message_);
  StartWrite(&message_);
}

void WatchReactor::OnWriteDone(bool ok) {
  {
    absl::MutexLock lock(&mutex_);
    if (ok && !cancelled_) {
      // A new alarm each time: the callback of the last may still be returning.
      alarm_.emplace().Set(absl::ToChronoTime(absl::Now() + interval_),
                           [this](bool) { OnAlarm(); });
      return;
    }
  }
  Finish(grpc::Status::CANCELLED);
}

void WatchReactor::OnAlarm() {
  // After Finish this object may be gone.
  if (Cancelled()) {
    Finish(grpc::Status::CANCELLED);
  } else {
    Write();
  }
}

bool WatchReactor::Cancelled() {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

void WatchReactor::OnCancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  if (alarm_) alarm_->Cancel();
}

void WatchReactor::OnDone() {
  ended_();
  delete this;
}

}  // namespace moed::server
