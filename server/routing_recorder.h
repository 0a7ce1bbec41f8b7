// Writes recorded routing (cache/routing_log.h) to a file, behind the engine's back: Append only
// copies, a thread of its own writes. A disk that fails or falls behind ends the recording with a
// line in the log, never a request.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace moed::server {

class RoutingRecorder {
 public:
  // Makes the file, or empties it. INVALID_ARGUMENT, naming it, if it cannot be written.
  static absl::StatusOr<std::unique_ptr<RoutingRecorder>> Create(const std::string& path);
  // Writes what is left.
  ~RoutingRecorder();

  // By one thread.
  void Append(std::string bytes);

 private:
  RoutingRecorder(std::string path, int fd);

  void WriteUntilClosed();
  // False once the file cannot be written any more.
  bool Write(const std::string& bytes);
  bool SomethingToDo() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return closing_ || pending_.size() >= kWriteBytes;
  }

  static constexpr size_t kWriteBytes = size_t{64} << 10;
  static constexpr size_t kMaxPendingBytes = size_t{16} << 20;

  const std::string path_;
  const int fd_;
  absl::Mutex mutex_;
  std::string pending_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;  // for good: nothing more is taken
  std::thread thread_;
};

}  // namespace moed::server
