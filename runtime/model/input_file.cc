#include "runtime/model/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace moed::model {

InputFile::InputFile(int descriptor, uint64_t bytes, std::string name)
    : descriptor_(descriptor),
      bytes_(bytes),
      name_(std::move(name)),
      direct_(std::make_unique<DirectFile>(descriptor)) {}

InputFile::InputFile(InputFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      bytes_(other.bytes_),
      name_(std::move(other.name_)),
      direct_(std::move(other.direct_)) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(bytes_, other.bytes_);
  std::swap(name_, other.name_);
  std::swap(direct_, other.direct_);
  return *this;
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

absl::StatusOr<InputFile> InputFile::Open(const std::string& path, std::string name) {
  // O_NONBLOCK: opening a pipe that nobody writes to must not wait.
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", name));
  InputFile file(descriptor, 0, std::move(name));
  struct stat status;
  if (fstat(descriptor, &status) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot look at ", file.name_));
  }
  if (!S_ISREG(status.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(file.name_, ": not a regular file"));
  }
  file.bytes_ = static_cast<uint64_t>(status.st_size);
  return file;
}

absl::Status InputFile::ReadAt(uint64_t offset, std::span<std::byte> destination,
                               Reread reread) const {
  if (reread == Reread::kNever) {
    const size_t read = direct_->Read(offset, destination);
    destination = destination.subspan(read);
    offset += read;
  }
  while (!destination.empty()) {
    const ssize_t count =
        pread(descriptor_, destination.data(), destination.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return absl::DataLossError(
          absl::StrCat("cannot read ", name_, " at byte ", offset, ": ", std::strerror(errno)));
    }
    if (count == 0) {
      return absl::DataLossError(absl::StrCat(name_, " ends at byte ", offset, " but had ", bytes_,
                                              " bytes when it was opened"));
    }
    destination = destination.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return absl::OkStatus();
}

}  // namespace moed::model
