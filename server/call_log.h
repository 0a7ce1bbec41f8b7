// Watches every call of a listener from its first byte to its end: counts those that run, so that a
// shutdown can wait for them and not longer, and writes a log line for each. Never sees messages.
#pragma once

#include <grpcpp/support/server_interceptor.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace moed::server {

// Calls that run now and will end by themselves. Thread-safe.
class CallCounter {
 public:
  void Started();
  void Ended();
  // Waits, at most for `patience`, until none runs and for `quiet` none has: clients that just had
  // an answer may be about to ask again. False if the patience ended first.
  bool WaitUntilIdle(absl::Duration quiet, absl::Duration patience);

 private:
  absl::Mutex mutex_;
  int64_t running_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time last_end_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

class CallLog final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit CallLog(std::shared_ptr<CallCounter> calls) : calls_(std::move(calls)) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override;

 private:
  const std::shared_ptr<CallCounter> calls_;
};

}  // namespace moed::server
