// A regular file opened for reading at offsets (pread). Never mapped: a file cut short while it is
// served is then an error of one read, not a signal. Reading is thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace moed::model {

class InputFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED or UNAVAILABLE as the system says; INVALID_ARGUMENT if it is no
  // regular file (a pipe or a device would block or never end).
  static absl::StatusOr<InputFile> Open(const std::string& path);

  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;
  ~InputFile();

  const std::string& path() const { return path_; }
  // When it was opened.
  uint64_t bytes() const { return bytes_; }

  // Fills `destination` from `offset` on. DATA_LOSS, naming the file, if it ends before or cannot
  // be read.
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> destination) const;

 private:
  InputFile(int descriptor, uint64_t bytes, std::string path);

  int descriptor_ = -1;
  uint64_t bytes_ = 0;
  std::string path_;
};

}  // namespace moed::model
