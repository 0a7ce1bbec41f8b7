#include "cache/hot_set_snapshot.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cache/expert_index.h"

namespace moed::cache {
namespace {

constexpr absl::string_view kMagic = "moedhots";
constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderBytes = 8 + 4 + 8 + 4;
constexpr size_t kExpertBytes = 4 + 1;
constexpr size_t kChecksumBytes = 8;

// FNV-1a, 64 bits (Fowler, Noll, Vo): finds damage, not forgery.
uint64_t Checksum(absl::string_view bytes, uint64_t hash = 0xcbf29ce484222325) {
  for (char byte : bytes) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001b3;
  return hash;
}

template <typename Int>
void Append(std::string& bytes, Int value) {
  for (size_t i = 0; i < sizeof(Int); ++i) bytes.push_back(static_cast<char>(value >> (8 * i)));
}

template <typename Int>
Int Take(absl::string_view& bytes) {
  Int value = 0;
  for (size_t i = 0; i < sizeof(Int); ++i) {
    value |= static_cast<Int>(static_cast<uint8_t>(bytes[i])) << (8 * i);
  }
  bytes.remove_prefix(sizeof(Int));
  return value;
}

uint64_t Fingerprint(std::span<const int> experts_per_layer, absl::string_view model) {
  std::string shape;
  for (int experts : experts_per_layer) absl::StrAppend(&shape, experts, ",");
  return Checksum(model, Checksum(shape));
}

absl::Status CheckHeader(absl::string_view bytes, uint64_t fingerprint) {
  if (bytes.size() < kHeaderBytes + kChecksumBytes || bytes.substr(0, kMagic.size()) != kMagic) {
    return absl::DataLossError("this is no hot-set snapshot, or a truncated one; starting cold");
  }
  bytes.remove_prefix(kMagic.size());
  if (const uint32_t version = Take<uint32_t>(bytes); version != kVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the hot-set snapshot has version ", version,
                                                      ", not ", kVersion, "; starting cold"));
  }
  if (Take<uint64_t>(bytes) != fingerprint) {
    return absl::FailedPreconditionError(
        "the hot-set snapshot belongs to another model; starting cold");
  }
  return absl::OkStatus();
}

}  // namespace

std::string SerializeHotSet(const HotSet& hot_set, std::span<const int> experts_per_layer,
                            absl::string_view model) {
  const ExpertIndex index(experts_per_layer);
  std::vector<uint8_t> resident(index.total_experts(), 0);
  for (ExpertKey key : hot_set.residents) resident[index.Of(key)] = 1;
  std::string bytes(kMagic);
  Append(bytes, kVersion);
  Append(bytes, Fingerprint(experts_per_layer, model));
  Append(bytes, static_cast<uint32_t>(index.total_experts()));
  for (int32_t i = 0; i < index.total_experts(); ++i) {
    Append(bytes, std::bit_cast<uint32_t>(hot_set.heat[i]));
    Append(bytes, resident[i]);
  }
  Append(bytes, Checksum(bytes));
  return bytes;
}

absl::StatusOr<HotSet> ParseHotSet(absl::string_view bytes, std::span<const int> experts_per_layer,
                                   absl::string_view model) {
  const uint64_t fingerprint = Fingerprint(experts_per_layer, model);
  if (absl::Status status = CheckHeader(bytes, fingerprint); !status.ok()) return status;
  const ExpertIndex index(experts_per_layer);
  const size_t total = index.total_experts();
  if (bytes.size() != kHeaderBytes + total * kExpertBytes + kChecksumBytes) {
    return absl::DataLossError(absl::StrCat("the hot-set snapshot has ", bytes.size(),
                                            " bytes, which is not its length; starting cold"));
  }
  absl::string_view checksum = bytes.substr(bytes.size() - kChecksumBytes);
  bytes.remove_suffix(kChecksumBytes);
  if (Take<uint64_t>(checksum) != Checksum(bytes)) {
    return absl::DataLossError("the hot-set snapshot is damaged (checksum); starting cold");
  }
  bytes.remove_prefix(kHeaderBytes);
  HotSet hot_set;
  std::vector<std::pair<float, ExpertKey>> residents;
  for (int layer = 0; layer < index.num_layers(); ++layer) {
    for (int expert = 0; expert < index.num_experts(layer); ++expert) {
      const float heat = std::bit_cast<float>(Take<uint32_t>(bytes));
      hot_set.heat.push_back(std::isfinite(heat) && heat > 0 ? heat : 0);
      if (Take<uint8_t>(bytes) != 0) residents.push_back({-hot_set.heat.back(), {layer, expert}});
    }
  }
  std::sort(residents.begin(), residents.end());
  for (const auto& [negative_heat, key] : residents) hot_set.residents.push_back(key);
  return hot_set;
}

}  // namespace moed::cache
