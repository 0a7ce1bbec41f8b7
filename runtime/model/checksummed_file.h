// A safetensors file as it is written: every tensor in equal pieces, each with checksums of its
// parts in the header (tensor_checksums.h), which is written last. Pieces may be written in any
// order by any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/model/output_file.h"
#include "runtime/model/safetensors_header.h"

namespace moed::model {

struct ChecksummedTensor {
  TensorLayout layout;
  int64_t pieces = 1;
  int64_t parts = 1;  // of each piece
};

class ChecksummedFile {
 public:
  // `metadata` goes into the header beside the checksums. The errors of OutputFile.
  static absl::StatusOr<ChecksummedFile> Create(const std::string& path,
                                                std::vector<ChecksummedTensor> tensors,
                                                SafetensorsMetadata metadata);

  // Each piece once; `bytes` is all of it, `checksums` those of its parts.
  absl::Status Write(size_t tensor, int64_t piece, std::span<const std::byte> bytes,
                     std::span<const uint32_t> checksums);

  // Writes the header, after all pieces, and waits until everything is on the disk.
  absl::Status Finish();

  uint64_t bytes() const { return bytes_; }

 private:
  ChecksummedFile(OutputFile file, std::vector<ChecksummedTensor> tensors,
                  SafetensorsMetadata metadata);
  std::string Header() const;

  OutputFile file_;
  std::vector<ChecksummedTensor> tensors_;
  SafetensorsMetadata metadata_;
  std::vector<std::vector<uint32_t>> checksums_;  // of each tensor's parts
  std::vector<uint64_t> offsets_;                 // of each tensor
  uint64_t bytes_ = 0;                            // of the file
};

}  // namespace moed::model
