#include "server/routing_recorder.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace moed::server {
namespace {

// What a killed process may lose.
constexpr absl::Duration kWriteInterval = absl::Seconds(1);

}  // namespace

absl::StatusOr<std::unique_ptr<RoutingRecorder>> RoutingRecorder::Create(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--record-routing: cannot write ", path, ": ", std::strerror(errno)));
  }
  return std::unique_ptr<RoutingRecorder>(new RoutingRecorder(path, fd));
}

RoutingRecorder::RoutingRecorder(std::string path, int fd)
    : path_(std::move(path)), fd_(fd), thread_([this] { WriteUntilClosed(); }) {}

RoutingRecorder::~RoutingRecorder() {
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
  }
  thread_.join();
  close(fd_);
}

void RoutingRecorder::Append(std::string bytes) {
  absl::MutexLock lock(&mutex_);
  if (ended_) return;
  if (pending_.size() + bytes.size() > kMaxPendingBytes) {
    // A hole would make what follows unreadable.
    ended_ = true;
    spdlog::warn("{} cannot be written as fast as routing is recorded; recording ends", path_);
    return;
  }
  pending_ += bytes;
}

void RoutingRecorder::WriteUntilClosed() {
  for (bool closing = false; !closing;) {
    std::string bytes;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.AwaitWithTimeout(absl::Condition(this, &RoutingRecorder::SomethingToDo),
                              kWriteInterval);
      bytes = std::exchange(pending_, {});
      closing = closing_;
    }
    if (Write(bytes)) continue;
    spdlog::warn("cannot write {}: {}; recording ends", path_, std::strerror(errno));
    absl::MutexLock lock(&mutex_);
    ended_ = true;
    return;
  }
}

bool RoutingRecorder::Write(const std::string& bytes) {
  for (size_t written = 0; written < bytes.size();) {
    const ssize_t count = write(fd_, bytes.data() + written, bytes.size() - written);
    if (count < 0 && errno != EINTR) return false;
    if (count > 0) written += static_cast<size_t>(count);
  }
  return true;
}

}  // namespace moed::server
