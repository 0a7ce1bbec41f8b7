#include "runtime/model/recoded_experts.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/backend/bf12.h"
#include "runtime/model/for_each_expert.h"

namespace moed::model {
namespace {

using backend::BFloat16;
using backend::ExpertFormat;
using backend::ExpertFormatKind;
using backend::ExpertPart;

// A sample of large experts stops here; they then come from every second layer, or fewer.
constexpr size_t kMostSampledBytes = size_t{4} << 30;

// One expert a layer, another in each; of as many layers as the limit allows.
std::vector<cache::ExpertKey> Sample(const ModelConfig& config, size_t blob_bytes) {
  std::vector<cache::ExpertKey> sample;
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    if (config.layers[layer].is_moe) sample.push_back({layer, layer % config.router.num_experts});
  }
  const size_t stride = 1 + sample.size() * blob_bytes / kMostSampledBytes;
  std::vector<cache::ExpertKey> kept;
  for (size_t i = 0; i < sample.size(); i += stride) kept.push_back(sample[i]);
  return kept;
}

// Rows of `part` of all neurons, from a bf12 blob into a bf16 one. `row` holds one bf12 row.
void DecodePart(const ExpertFormat& format, const std::byte* blob, ExpertPart part,
                const ExpertFormat& target_format, std::byte* target, std::vector<BFloat16>& row) {
  const int64_t width = target_format.row_values();
  for (int64_t i = 0; i < format.intermediate(); ++i) {
    backend::DecodeBf12(format, blob, part, i, 1, 0, format.row_values(), row.data(), 0);
    auto* values = reinterpret_cast<BFloat16*>(target + target_format.neuron_offset(i)) +
                   static_cast<int64_t>(part) * width;
    std::copy_n(row.begin(), format.hidden(), values);
    std::fill(values + format.hidden(), values + width, BFloat16{0});
  }
}

}  // namespace

absl::Status EncodedExperts::Read(cache::ExpertKey key, ReadShare share,
                                  std::span<std::byte> blob) const {
  if (share.index != 0) return absl::OkStatus();
  const absl::StatusOr<std::span<std::byte>> stored =
      ExpertScratch(ScratchPurpose::kSource, source_.format().blob_bytes());
  if (!stored.ok()) return stored.status();
  if (absl::Status status = source_.Read(key, {}, *stored); !status.ok()) return status;
  if (backend::EncodeBf12(source_.format(), *stored, format_, blob.first(format_.blob_bytes()))) {
    return absl::OkStatus();
  }
  return absl::OutOfRangeError(absl::StrCat("expert ", key.expert, " of layer ", key.layer,
                                            " has more values outside its windows than bf12 has "
                                            "room for"));
}

absl::Status DecodedExperts::Read(cache::ExpertKey key, ReadShare share,
                                  std::span<std::byte> blob) const {
  if (share.index != 0) return absl::OkStatus();
  const ExpertFormat& stored_format = source_.format();
  const absl::StatusOr<std::span<std::byte>> stored =
      ExpertScratch(ScratchPurpose::kSource, stored_format.blob_bytes());
  if (!stored.ok()) return stored.status();
  if (absl::Status status = source_.Read(key, {}, *stored); !status.ok()) return status;
  std::vector<BFloat16> row(static_cast<size_t>(stored_format.row_values()));
  for (const ExpertPart part : {ExpertPart::kGate, ExpertPart::kUp, ExpertPart::kDown}) {
    DecodePart(stored_format, stored->data(), part, format_, blob.data(), row);
  }
  const size_t end = format_.neuron_offset(format_.intermediate());
  std::memset(blob.data() + end, 0, format_.blob_bytes() - end);
  return absl::OkStatus();
}

absl::StatusOr<ExpertFormat> SampleBf12Format(const ModelConfig& config,
                                              const ExpertSource& source) {
  const size_t blob_bytes = source.format().blob_bytes();
  std::mutex mutex;
  int needed = 0;  // guarded by mutex
  absl::Status status = ForEachExpert(
      Sample(config, blob_bytes), ExpertThreads(0, blob_bytes), [&](cache::ExpertKey key) {
        const auto blob = ExpertScratch(ScratchPurpose::kSource, blob_bytes);
        if (!blob.ok()) return blob.status();
        if (absl::Status read = source.Read(key, {}, *blob); !read.ok()) return read;
        const int needs = backend::Bf12TileEscapesNeeded(source.format(), *blob);
        const std::lock_guard lock(mutex);
        needed = std::max(needed, needs);
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return ExpertFormat(ExpertFormatKind::kBF12, config.hidden, config.expert_intermediate,
                      backend::Bf12TileEscapeCapacity(needed));
}

}  // namespace moed::model
