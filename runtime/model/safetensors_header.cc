#include "runtime/model/safetensors_header.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "runtime/model/json.h"

namespace moed::model {
namespace {

using backend::DType;
using nlohmann::json;

constexpr char kMetadataKey[] = "__metadata__";
constexpr size_t kDataMultiple = 4096;  // bytes

struct DTypeEntry {
  std::string_view name;
  int bits;
  std::optional<DType> dtype;
};

constexpr std::array<DTypeEntry, 22> kDTypes = {{
    {"F32", 32, DType::kF32},
    {"F16", 16, DType::kF16},
    {"BF16", 16, DType::kBF16},
    {"I32", 32, DType::kI32},
    {"U8", 8, DType::kU8},
    {"BOOL", 8, std::nullopt},
    {"I8", 8, std::nullopt},
    {"F8_E4M3", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},
    {"F8_E4M3FNUZ", 8, std::nullopt},
    {"F8_E5M2FNUZ", 8, std::nullopt},
    {"I16", 16, std::nullopt},
    {"U16", 16, std::nullopt},
    {"U32", 32, std::nullopt},
    {"C64", 64, std::nullopt},
    {"I64", 64, std::nullopt},
    {"U64", 64, std::nullopt},
    {"F64", 64, std::nullopt},
    {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
}};

absl::Status Damaged(const std::string& file, const std::string& what) {
  return absl::DataLossError(absl::StrCat(file, ": ", what, "; download the file again"));
}

// Parses the entries of one header; keeps the file's name for messages.
class HeaderParser {
 public:
  HeaderParser(const std::string& file, uint64_t data_start, uint64_t data_bytes)
      : file_(file), data_start_(data_start), data_bytes_(data_bytes) {}

  absl::StatusOr<TensorEntry> ParseEntry(const std::string& name, const json& value) const;
  absl::Status CheckTiling(const std::vector<TensorEntry>& sorted) const;

 private:
  absl::Status Bad(const std::string& name, const std::string& what) const {
    return Damaged(file_,
                   absl::StrCat("tensor \"", absl::CHexEscape(name.substr(0, 200)), "\" ", what));
  }
  absl::Status ParseDType(const json& value, TensorEntry* entry, int* bits) const;
  absl::Status ParseShape(const json& value, TensorEntry* entry, uint64_t* elements) const;
  absl::Status ParseOffsets(const json& value, TensorEntry* entry) const;

  const std::string& file_;
  uint64_t data_start_;
  uint64_t data_bytes_;
};

absl::Status HeaderParser::ParseDType(const json& value, TensorEntry* entry, int* bits) const {
  const auto dtype = value.find("dtype");
  if (dtype == value.end() || !dtype->is_string()) return Bad(entry->name, "has no dtype");
  entry->dtype_name = dtype->get<std::string>();
  const auto* found = std::find_if(kDTypes.begin(), kDTypes.end(), [&](const DTypeEntry& known) {
    return known.name == entry->dtype_name;
  });
  if (found == kDTypes.end()) {
    return Bad(entry->name, absl::StrCat("has the unknown dtype \"",
                                         absl::CHexEscape(entry->dtype_name.substr(0, 40)), "\""));
  }
  entry->dtype = found->dtype;
  *bits = found->bits;
  return absl::OkStatus();
}

absl::Status HeaderParser::ParseShape(const json& value, TensorEntry* entry,
                                      uint64_t* elements) const {
  const auto shape = value.find("shape");
  if (shape == value.end() || !shape->is_array()) return Bad(entry->name, "has no shape");
  *elements = 1;
  for (const json& extent : *shape) {
    if (!extent.is_number_unsigned() ||
        extent.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()} ||
        __builtin_mul_overflow(*elements, extent.get<uint64_t>(), elements)) {
      return Bad(entry->name, "has a shape that is no list of sizes, or too large a one");
    }
    entry->shape.push_back(extent.get<int64_t>());
  }
  return absl::OkStatus();
}

absl::Status HeaderParser::ParseOffsets(const json& value, TensorEntry* entry) const {
  const auto offsets = value.find("data_offsets");
  if (offsets == value.end() || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned()) {
    return Bad(entry->name, "has no pair of data_offsets");
  }
  const uint64_t begin = (*offsets)[0].get<uint64_t>();
  const uint64_t end = (*offsets)[1].get<uint64_t>();
  if (begin > end || end > data_bytes_) {
    return Bad(entry->name, absl::StrCat("lies at ", begin, " to ", end, " of ", data_bytes_,
                                         " bytes of data: the file is cut short or damaged"));
  }
  entry->offset = data_start_ + begin;
  entry->bytes = end - begin;
  return absl::OkStatus();
}

absl::StatusOr<TensorEntry> HeaderParser::ParseEntry(const std::string& name,
                                                     const json& value) const {
  TensorEntry entry;
  entry.name = name;
  if (!value.is_object()) return Bad(name, "is no JSON object");
  int bits = 0;
  uint64_t elements = 0;
  absl::Status status = ParseDType(value, &entry, &bits);
  if (status.ok()) status = ParseShape(value, &entry, &elements);
  if (status.ok()) status = ParseOffsets(value, &entry);
  if (!status.ok()) return status;
  uint64_t total_bits = 0;
  if (__builtin_mul_overflow(elements, static_cast<uint64_t>(bits), &total_bits) ||
      total_bits % 8 != 0 || total_bits / 8 != entry.bytes) {
    return Bad(name, absl::StrCat("of shape [", absl::StrJoin(entry.shape, ", "), "] ",
                                  entry.dtype_name, " cannot have ", entry.bytes, " bytes"));
  }
  return entry;
}

absl::Status HeaderParser::CheckTiling(const std::vector<TensorEntry>& sorted) const {
  uint64_t expected = data_start_;
  for (const TensorEntry& entry : sorted) {
    if (entry.offset != expected) {
      return Bad(entry.name, entry.offset < expected ? "overlaps the tensor before it"
                                                     : "leaves a hole before it");
    }
    expected += entry.bytes;
  }
  if (expected != data_start_ + data_bytes_) {
    return Damaged(
        file_, absl::StrCat(data_start_ + data_bytes_ - expected, " bytes after the last tensor"));
  }
  return absl::OkStatus();
}

absl::Status ReadMetadata(const json& value, const std::string& file,
                          SafetensorsMetadata* metadata) {
  bool valid = value.is_object();
  for (const json& entry : value) valid = valid && entry.is_string();
  if (!valid) return Damaged(file, "__metadata__ must map strings to strings");
  for (const auto& [key, entry] : value.items()) metadata->emplace(key, entry.get<std::string>());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<uint64_t> ParseSafetensorsPrefix(std::string_view prefix, uint64_t file_bytes,
                                                const std::string& file) {
  if (prefix.size() < kSafetensorsPrefixBytes || file_bytes < kSafetensorsPrefixBytes) {
    return Damaged(file, "too short for a safetensors file");
  }
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) {
    header_bytes = header_bytes << 8 | static_cast<unsigned char>(prefix[i]);
  }
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    return Damaged(file,
                   absl::StrCat("a header of ", header_bytes, " bytes: not a safetensors file"));
  }
  if (header_bytes > file_bytes - kSafetensorsPrefixBytes) {
    return Damaged(file, "ends within its header");
  }
  return header_bytes;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view header,
                                                         uint64_t file_bytes,
                                                         const std::string& file) {
  if (header.empty() || header.front() != '{') return Damaged(file, "the header is no JSON object");
  const absl::StatusOr<json> parsed = ParseJsonObject(header, file);
  if (!parsed.ok()) return absl::DataLossError(parsed.status().message());

  const uint64_t data_start = kSafetensorsPrefixBytes + header.size();
  if (file_bytes < data_start) return Damaged(file, "ends within its header");
  const HeaderParser parser(file, data_start, file_bytes - data_start);
  SafetensorsHeader result;
  std::vector<TensorEntry>& entries = result.tensors;
  entries.reserve(parsed->size());
  for (const auto& [name, value] : parsed->items()) {
    if (name == kMetadataKey) {
      absl::Status status = ReadMetadata(value, file, &result.metadata);
      if (!status.ok()) return status;
      continue;
    }
    absl::StatusOr<TensorEntry> entry = parser.ParseEntry(name, value);
    if (!entry.ok()) return entry.status();
    entries.push_back(*std::move(entry));
  }
  std::sort(entries.begin(), entries.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::tie(a.offset, a.bytes) < std::tie(b.offset, b.bytes);
  });
  absl::Status status = parser.CheckTiling(entries);
  if (!status.ok()) return status;
  return result;
}

std::string WriteSafetensorsHeader(const std::vector<TensorLayout>& tensors,
                                   const SafetensorsMetadata& metadata) {
  json header = json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  uint64_t offset = 0;
  for (const TensorLayout& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype_name},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.bytes}}};
    offset += tensor.bytes;
  }
  std::string text = header.dump();
  const size_t unpadded = kSafetensorsPrefixBytes + text.size();
  text.append((kDataMultiple - unpadded % kDataMultiple) % kDataMultiple, ' ');
  std::string bytes;
  for (size_t i = 0; i < kSafetensorsPrefixBytes; ++i) {
    bytes.push_back(static_cast<char>(text.size() >> (8 * i) & 0xff));
  }
  return bytes + text;
}

}  // namespace moed::model
