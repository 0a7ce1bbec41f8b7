// Checksums of tensors in a safetensors file's metadata: one CRC-32 (zlib's) for each part of a
// tensor that is read by itself. Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/model/tensor_files.h"

namespace moed::model {

uint32_t Checksum(std::span<const std::byte> bytes);

// The metadata's key and value for `tensor`: eight hexadecimal digits a part.
std::string ChecksumKey(std::string_view tensor);
std::string ChecksumText(std::span<const uint32_t> checksums);

// Those of the `parts` parts of `tensor`. DATA_LOSS, naming file and tensor, if they are no such
// list.
absl::StatusOr<std::vector<uint32_t>> ReadChecksums(const StoredTensor& tensor, int64_t parts);

}  // namespace moed::model
