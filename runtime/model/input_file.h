// A regular file opened for reading at offsets (pread). Never mapped: a file cut short while it is
// served is then an error of one read, not a signal. Reading is thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/model/direct_file.h"
#include "runtime/model/reread.h"

namespace moed::model {

class InputFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED or UNAVAILABLE as the system says; INVALID_ARGUMENT if it is no
  // regular file (a pipe or a device would block or never end). `name` is what messages call it:
  // behind links the path would say nothing to an operator.
  static absl::StatusOr<InputFile> Open(const std::string& path, std::string name);

  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;
  ~InputFile();

  const std::string& name() const { return name_; }
  // When it was opened.
  uint64_t bytes() const { return bytes_; }

  // Fills `destination` from `offset` on; what will never be read again passes by the page cache if
  // it is not there. DATA_LOSS, naming the file, if it ends before or cannot be read.
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> destination,
                      Reread reread = Reread::kLikely) const;

 private:
  InputFile(int descriptor, uint64_t bytes, std::string name);

  int descriptor_ = -1;
  uint64_t bytes_ = 0;
  std::string name_;
  std::unique_ptr<DirectFile> direct_;
};

}  // namespace moed::model
