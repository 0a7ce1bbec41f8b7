// A stream that writes a fresh message at every interval until the client leaves. Owned by gRPC;
// its alarm and writes never overlap.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "proto/moed/v1/experts.pb.h"

namespace moed::server {

class WatchReactor final : public grpc::ServerWriteReactor<v1::ExpertStats> {
 public:
  // `fill` writes the message to send; `ended` is called once, last. Deletes itself.
  static WatchReactor* Start(absl::Duration interval, std::function<void(v1::ExpertStats*)> fill,
                             std::function<void()> ended);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  WatchReactor(absl::Duration interval, std::function<void(v1::ExpertStats*)> fill,
               std::function<void()> ended);

  void Write();
  // The alarm rang, or was cancelled.
  void OnAlarm();
  bool Cancelled();

  const absl::Duration interval_;
  const std::function<void(v1::ExpertStats*)> fill_;
  const std::function<void()> ended_;
  v1::ExpertStats message_;
  absl::Mutex mutex_;
  std::optional<grpc::Alarm> alarm_ ABSL_GUARDED_BY(mutex_);
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace moed::server
