#include "runtime/model/staging_directory.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace moed::model {
namespace {

namespace fs = std::filesystem;

std::string ParentOf(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

absl::Status SyncDirectory(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  const int failed = fsync(descriptor);
  const int error = errno;
  close(descriptor);
  return failed == 0 ? absl::OkStatus()
                     : absl::ErrnoToStatus(error, absl::StrCat("cannot sync ", path));
}

absl::Status ExistsAlready(const std::string& path) {
  return absl::AlreadyExistsError(
      absl::StrCat(path, " exists already; name a folder that does not"));
}

}  // namespace

StagingDirectory::StagingDirectory(std::string destination, std::string path)
    : destination_(std::move(destination)), path_(std::move(path)) {}

StagingDirectory::StagingDirectory(StagingDirectory&& other) noexcept
    : destination_(std::move(other.destination_)), path_(std::exchange(other.path_, "")) {}

StagingDirectory::~StagingDirectory() {
  std::error_code ignored;
  if (!path_.empty()) fs::remove_all(path_, ignored);
}

absl::StatusOr<StagingDirectory> StagingDirectory::Create(std::string destination) {
  while (destination.size() > 1 && destination.back() == '/') destination.pop_back();
  std::error_code error;
  if (fs::symlink_status(destination, error).type() != fs::file_type::not_found) {
    return ExistsAlready(destination);
  }
  // A number of its own for what an interrupted run left behind.
  constexpr int kMostLeftBehind = 1000;
  for (int i = 0; i < kMostLeftBehind; ++i) {
    std::string path = absl::StrCat(destination, ".partial-", i);
    if (mkdir(path.c_str(), 0777) == 0) {
      return StagingDirectory(std::move(destination), std::move(path));
    }
    if (errno != EEXIST) {
      return absl::ErrnoToStatus(errno,
                                 absl::StrCat("cannot make a folder in ", ParentOf(destination)));
    }
  }
  return absl::AlreadyExistsError(
      absl::StrCat(destination, ".partial-* are there already; remove them"));
}

std::string StagingDirectory::PathOf(std::string_view name) const {
  return absl::StrCat(path_, "/", std::string(name));
}

absl::Status StagingDirectory::Commit() {
  if (absl::Status status = SyncDirectory(path_); !status.ok()) return status;
  int failed = renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, destination_.c_str(), RENAME_NOREPLACE);
  // Some file systems know no flags.
  if (failed != 0 && errno == EINVAL) failed = rename(path_.c_str(), destination_.c_str());
  if (failed != 0 && (errno == EEXIST || errno == ENOTEMPTY)) return ExistsAlready(destination_);
  if (failed != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot rename ", path_, " to ", destination_));
  }
  path_.clear();
  return SyncDirectory(ParentOf(destination_));
}

}  // namespace moed::model
