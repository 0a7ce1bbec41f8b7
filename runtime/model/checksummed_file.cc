#include "runtime/model/checksummed_file.h"

#include <algorithm>
#include <utility>

#include "runtime/model/tensor_checksums.h"

namespace moed::model {

absl::StatusOr<ChecksummedFile> ChecksummedFile::Create(const std::string& path,
                                                        std::vector<ChecksummedTensor> tensors,
                                                        SafetensorsMetadata metadata) {
  absl::StatusOr<OutputFile> file = OutputFile::Create(path);
  if (!file.ok()) return file.status();
  return ChecksummedFile(*std::move(file), std::move(tensors), std::move(metadata));
}

ChecksummedFile::ChecksummedFile(OutputFile file, std::vector<ChecksummedTensor> tensors,
                                 SafetensorsMetadata metadata)
    : file_(std::move(file)), tensors_(std::move(tensors)), metadata_(std::move(metadata)) {
  for (const ChecksummedTensor& tensor : tensors_) {
    checksums_.emplace_back(static_cast<size_t>(tensor.pieces * tensor.parts));
  }
  // A checksum has as many digits before it is known as after.
  bytes_ = Header().size();
  for (const ChecksummedTensor& tensor : tensors_) {
    offsets_.push_back(bytes_);
    bytes_ += tensor.layout.bytes;
  }
}

absl::Status ChecksummedFile::Write(size_t tensor, int64_t piece, std::span<const std::byte> bytes,
                                    std::span<const uint32_t> checksums) {
  std::copy(checksums.begin(), checksums.end(),
            checksums_[tensor].begin() + piece * tensors_[tensor].parts);
  return file_.WriteAt(offsets_[tensor] + static_cast<uint64_t>(piece) * bytes.size(), bytes);
}

absl::Status ChecksummedFile::Finish() {
  const std::string header = Header();
  absl::Status status = file_.WriteAt(0, std::as_bytes(std::span(header)));
  return status.ok() ? file_.Sync() : status;
}

std::string ChecksummedFile::Header() const {
  SafetensorsMetadata metadata = metadata_;
  std::vector<TensorLayout> layouts;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    layouts.push_back(tensors_[i].layout);
    metadata.emplace(ChecksumKey(layouts.back().name), ChecksumText(checksums_[i]));
  }
  return WriteSafetensorsHeader(layouts, metadata);
}

}  // namespace moed::model
