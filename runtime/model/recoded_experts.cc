#include "runtime/model/recoded_experts.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/backend/bf12.h"
#include "runtime/model/bf12_survey.h"
#include "runtime/model/for_each_expert.h"

namespace moed::model {
namespace {

using backend::BFloat16;
using backend::ExpertFormat;
using backend::ExpertPart;

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
  if (absl::Status status = source_.Read(key, {.reread = share.reread}, *stored); !status.ok())
    return status;
  const std::span<std::byte> target = blob.first(format_.blob_bytes());
  if (backend::EncodeBf12(source_.format(), *stored, format_, target)) {
    listed_escapes_ += backend::CountBf12Escapes(format_, target).total;
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
  if (absl::Status status = source_.Read(key, {.reread = share.reread}, *stored); !status.ok())
    return status;
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
  const absl::StatusOr<Bf12Survey> survey =
      SurveyExperts(source, SampleOfExperts(config, blob_bytes), ExpertThreads(0, blob_bytes));
  if (!survey.ok()) return survey.status();
  return Bf12WithRoomToSpare(source.format(), *survey);
}

}  // namespace moed::model
