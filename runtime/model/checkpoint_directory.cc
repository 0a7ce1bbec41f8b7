#include "runtime/model/checkpoint_directory.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace moed::model {
namespace {

namespace fs = std::filesystem;

bool IsPlainRelative(const fs::path& name) {
  if (name.empty() || name.is_absolute()) return false;
  for (const fs::path& part : name) {
    if (part == "..") return false;
  }
  return true;
}

bool IsBeneath(const fs::path& directory, const fs::path& file) {
  const fs::path relative = file.lexically_relative(directory);
  return !relative.empty() && *relative.begin() != ".." && *relative.begin() != ".";
}

}  // namespace

CheckpointDirectory::CheckpointDirectory(std::string path, std::string real_path)
    : path_(std::move(path)), real_path_(std::move(real_path)) {
  const fs::path snapshots = fs::path(real_path_).parent_path();
  if (snapshots.filename() == "snapshots") blobs_path_ = snapshots.parent_path() / "blobs";
}

absl::StatusOr<CheckpointDirectory> CheckpointDirectory::Open(const std::string& path) {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  if (error) return absl::NotFoundError(absl::StrCat(path, ": ", error.message()));
  if (!fs::is_directory(real, error)) {
    return absl::NotFoundError(absl::StrCat(path,
                                            ": not a directory; give the folder that holds "
                                            "config.json"));
  }
  return CheckpointDirectory(path, real);
}

std::string CheckpointDirectory::PathOf(std::string_view name) const {
  return fs::path(path_) / name;
}

bool CheckpointDirectory::Has(std::string_view name) const {
  std::error_code error;
  return fs::exists(fs::path(real_path_) / name, error);
}

absl::StatusOr<InputFile> CheckpointDirectory::OpenFile(std::string_view name) const {
  if (name.find('\0') != std::string_view::npos || !IsPlainRelative(name)) {
    return absl::InvalidArgumentError(absl::StrCat(
        path_, ": file name \"", std::string(name.substr(0, 200)), "\" leaves the directory"));
  }
  std::error_code error;
  const fs::path real = fs::canonical(fs::path(real_path_) / name, error);
  if (error) return absl::NotFoundError(absl::StrCat(PathOf(name), ": ", error.message()));
  const bool in_cache = !blobs_path_.empty() && real.parent_path() == blobs_path_;
  if (!in_cache && !IsBeneath(real_path_, real)) {
    return absl::InvalidArgumentError(absl::StrCat(
        PathOf(name), ": a link out of the checkpoint's directory; put the file itself there"));
  }
  return InputFile::Open(real, PathOf(name));
}

absl::StatusOr<std::string> CheckpointDirectory::ReadFile(std::string_view name,
                                                          size_t max_bytes) const {
  absl::StatusOr<InputFile> file = OpenFile(name);
  if (!file.ok()) return file.status();
  if (file->bytes() > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(PathOf(name), ": ", file->bytes(),
                                                   " bytes, more than the ", max_bytes,
                                                   " that such a file may have"));
  }
  std::string text(file->bytes(), '\0');
  absl::Status status = file->ReadAt(0, std::as_writable_bytes(std::span(text)));
  if (!status.ok()) return status;
  return text;
}

}  // namespace moed::model
