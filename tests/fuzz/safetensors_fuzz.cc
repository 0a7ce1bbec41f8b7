// The header of a safetensors file: any bytes are parsed or refused, and what is accepted tiles the
// data. The input's first two bytes say how much data follows the header.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "runtime/model/safetensors_header.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* input, size_t bytes) {
  if (bytes < 2) return 0;
  const uint64_t data_bytes = input[0] | input[1] << 8;
  const std::string_view header(reinterpret_cast<const char*>(input) + 2, bytes - 2);
  const uint64_t data_start = moed::model::kSafetensorsPrefixBytes + header.size();
  const auto parsed = moed::model::ParseSafetensorsHeader(header, data_start + data_bytes, "fuzz");
  if (!parsed.ok()) return 0;
  uint64_t next = data_start;
  for (const moed::model::TensorEntry& entry : parsed->tensors) {
    if (entry.offset != next) std::abort();
    next += entry.bytes;
  }
  if (next != data_start + data_bytes) std::abort();
  return 0;
}
