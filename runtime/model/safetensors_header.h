// The header of a safetensors file: which tensors there are, and where. Everything is checked
// before anything is allocated from it: a stranger wrote the numbers. Pure functions; any thread.
// Format: u64 little-endian N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the data.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/dtype.h"

namespace moed::model {

inline constexpr uint64_t kSafetensorsPrefixBytes = 8;
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct TensorEntry {
  std::string name;
  std::string dtype_name;               // as the file says: "BF16", "F8_E4M3"
  std::optional<backend::DType> dtype;  // empty if we cannot compute with it
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // from the start of the file
  uint64_t bytes = 0;
};

// What a writer noted about the file, "__metadata__": free keys and values.
using SafetensorsMetadata = std::map<std::string, std::string>;

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // in order of offset
  SafetensorsMetadata metadata;
};

// The header's length N from the file's first 8 bytes. DATA_LOSS, naming `file`, if it is above the
// format's limit or beyond the end of the file.
absl::StatusOr<uint64_t> ParseSafetensorsPrefix(std::string_view prefix, uint64_t file_bytes,
                                                const std::string& file);

// DATA_LOSS, naming `file` and the tensor: not JSON, a key twice, an unknown dtype, sizes that
// overflow, or tensors that do not tile the data exactly (hole, overlap, short or long file).
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view header,
                                                         uint64_t file_bytes,
                                                         const std::string& file);

// A tensor of a file that is to be written.
struct TensorLayout {
  std::string name;
  std::string dtype_name;
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
};

// The beginning of a file of `tensors`, which follow it in this order: prefix and header, filled up
// with spaces so that the data starts at a multiple of 4096 bytes.
std::string WriteSafetensorsHeader(const std::vector<TensorLayout>& tensors,
                                   const SafetensorsMetadata& metadata);

}  // namespace moed::model
