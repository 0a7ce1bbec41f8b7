// A file that is written at offsets, by any number of threads, and is safe on the disk once Sync
// has returned. The counterpart of InputFile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace moed::model {

class OutputFile {
 public:
  // ALREADY_EXISTS, NOT_FOUND or PERMISSION_DENIED as the system says, naming the file.
  static absl::StatusOr<OutputFile> Create(const std::string& path);

  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) noexcept;
  ~OutputFile();

  // RESOURCE_EXHAUSTED, naming the file: the disk is full, or a quota or limit of file sizes is
  // reached. DATA_LOSS: it cannot be written otherwise.
  absl::Status WriteAt(uint64_t offset, std::span<const std::byte> bytes) const;
  absl::Status Sync() const;

 private:
  OutputFile(int descriptor, std::string path);
  absl::Status Error(int error) const;

  int descriptor_ = -1;
  std::string path_;
};

}  // namespace moed::model
