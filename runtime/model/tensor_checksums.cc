#include "runtime/model/tensor_checksums.h"

#include <zlib.h>

#include <charconv>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace moed::model {
namespace {

constexpr int kDigits = 8;  // of one checksum
constexpr char kKeyPrefix[] = "moed.crc32.";

}  // namespace

uint32_t Checksum(std::span<const std::byte> bytes) {
  return static_cast<uint32_t>(
      crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

std::string ChecksumKey(std::string_view tensor) { return kKeyPrefix + std::string(tensor); }

std::string ChecksumText(std::span<const uint32_t> checksums) {
  std::string text;
  for (uint32_t checksum : checksums) absl::StrAppendFormat(&text, "%08x", checksum);
  return text;
}

absl::StatusOr<std::vector<uint32_t>> ReadChecksums(const StoredTensor& tensor, int64_t parts) {
  const auto found = tensor.metadata->find(ChecksumKey(tensor.entry.name));
  const std::string text = found == tensor.metadata->end() ? "" : found->second;
  std::vector<uint32_t> checksums(static_cast<size_t>(parts));
  bool valid = text.size() == checksums.size() * kDigits;
  for (size_t i = 0; valid && i < checksums.size(); ++i) {
    const char* begin = text.data() + i * kDigits;
    const auto [end, error] = std::from_chars(begin, begin + kDigits, checksums[i], 16);
    valid = error == std::errc() && end == begin + kDigits;
  }
  if (valid) return checksums;
  return absl::DataLossError(absl::StrCat(tensor.file->name(), ": the checksums of tensor \"",
                                          tensor.entry.name, "\" are not ", parts,
                                          " numbers of eight hexadecimal digits"));
}

}  // namespace moed::model
