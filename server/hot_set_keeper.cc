#include "server/hot_set_keeper.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"

namespace moed::server {
namespace {

absl::Status CannotWrite(const std::string& path) {
  return absl::UnavailableError(
      absl::StrCat("cannot write the hot set to ", path, ": ", std::strerror(errno)));
}

bool WriteAndSync(int fd, const std::string& bytes) {
  for (size_t written = 0; written < bytes.size();) {
    const ssize_t count = write(fd, bytes.data() + written, bytes.size() - written);
    if (count < 0 && errno != EINTR) return false;
    if (count > 0) written += static_cast<size_t>(count);
  }
  return fsync(fd) == 0;
}

// So that the new name outlives a power cut too.
void SyncDirectory(const std::string& path) {
  const std::string directory = std::filesystem::path(path).parent_path().string();
  const int fd = open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  fsync(fd);
  close(fd);
}

}  // namespace

absl::StatusOr<cache::HotSet> ReadHotSet(const HotSetFile& file) {
  std::ifstream stream(file.path, std::ios::binary);
  if (!stream) return absl::NotFoundError(absl::StrCat("there is no hot set at ", file.path));
  const std::string bytes(std::istreambuf_iterator<char>(stream), {});
  return cache::ParseHotSet(bytes, file.experts_per_layer, file.model);
}

absl::Status WriteHotSet(const HotSetFile& file, const cache::HotSet& hot_set) {
  const std::string bytes = SerializeHotSet(hot_set, file.experts_per_layer, file.model);
  const std::string beside = absl::StrCat(file.path, ".new");
  const int fd = open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return CannotWrite(beside);
  const bool written = WriteAndSync(fd, bytes);
  const absl::Status status = written ? absl::OkStatus() : CannotWrite(beside);
  close(fd);
  if (!status.ok()) return status;
  if (std::rename(beside.c_str(), file.path.c_str()) != 0) return CannotWrite(file.path);
  SyncDirectory(file.path);
  return absl::OkStatus();
}

HotSetKeeper::HotSetKeeper(HotSetFile file, absl::Duration interval, Source source)
    : file_(std::move(file)),
      interval_(interval),
      source_(std::move(source)),
      thread_([this] { Run(); }) {}

HotSetKeeper::~HotSetKeeper() {
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
  }
  thread_.join();
}

void HotSetKeeper::RequestSave(Saved saved) {
  absl::MutexLock lock(&mutex_);
  requests_.push_back(std::move(saved));
}

absl::Status HotSetKeeper::Save() {
  absl::Notification done;
  absl::Status status;
  RequestSave([&](const absl::StatusOr<int>& residents) {
    status = residents.status();
    done.Notify();
  });
  done.WaitForNotification();
  return status;
}

void HotSetKeeper::Run() {
  while (true) {
    std::vector<Saved> requests;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.AwaitWithTimeout(absl::Condition(this, &HotSetKeeper::Wanted), interval_);
      if (closing_ && requests_.empty()) return;
      requests = std::exchange(requests_, {});
    }
    const absl::StatusOr<int> residents = SaveOnce();
    if (!residents.ok()) spdlog::warn("{}", std::string(residents.status().message()));
    for (const Saved& saved : requests) saved(residents);
  }
}

absl::StatusOr<int> HotSetKeeper::SaveOnce() {
  absl::Notification taken;
  cache::HotSet hot_set;
  source_([&](cache::HotSet given) {
    hot_set = std::move(given);
    taken.Notify();
  });
  taken.WaitForNotification();
  if (absl::Status status = WriteHotSet(file_, hot_set); !status.ok()) return status;
  return static_cast<int>(hot_set.residents.size());
}

}  // namespace moed::server
