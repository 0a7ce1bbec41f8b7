#include "runtime/model/expert_format_choice.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/backend/bf12.h"
#include "runtime/model/convert_checkpoint.h"
#include "runtime/model/model_size.h"
#include "runtime/model/recoded_experts.h"

namespace moed::model {
namespace {

using backend::ExpertFormat;
using backend::ExpertFormatKind;

constexpr char kNoKernels[] = "this device has no kernels for bf12";
ServedExperts Recoded(std::unique_ptr<const ExpertSource> recoded, std::string note) {
  ServedExperts served;
  served.source = recoded.get();
  served.recoded = std::move(recoded);
  served.note = std::move(note);
  return served;
}

ServedExperts Encoded(const Checkpoint& checkpoint, const ExpertFormat& format) {
  ServedExperts served =
      Recoded(std::make_unique<EncodedExperts>(checkpoint.experts(), format), "");
  served.encoded_on_reading = true;
  return served;
}

// Why bf12 cannot or should not hold experts of this shape, or an empty text. `format` is bf12.
std::string WhyNot(const ExpertFormat& format) {
  if (!backend::Bf12Supports(format.hidden())) {
    return absl::StrCat("bf12 cannot hold experts of hidden size ", format.hidden());
  }
  if (format.stored_ratio() <= kMostStoredRatio) return "";
  return absl::StrFormat("in bf12 they would take %.1f %% of their bytes",
                         100 * format.stored_ratio());
}

// With the least room for escapes.
ExpertFormat SmallestBf12(const ExpertFormat& plain) {
  return ExpertFormat(ExpertFormatKind::kBF12, plain.hidden(), plain.intermediate(),
                      backend::Bf12TileEscapeCapacity(0));
}

// A remedy that is worth its line in the log: convert, if that pays.
std::string ConvertNote(const Checkpoint& checkpoint) {
  const ExpertFormat smallest = SmallestBf12(checkpoint.experts().format());
  if (!WhyNot(smallest).empty()) return "";
  return absl::StrFormat(
      "experts stay bf16; `moed convert %s DESTINATION` writes a checkpoint with the same weights, "
      "bit for bit, whose experts take %.0f %% of the bytes",
      checkpoint.directory(), 100 * smallest.stored_ratio());
}

absl::StatusOr<ServedExperts> ChooseFromBf12(const Checkpoint& checkpoint,
                                             const ExpertFormatRequest& request) {
  const bool wants_bf16 = request.preference == ExpertFormatPreference::kBF16;
  if (!wants_bf16 && request.kernels_take_bf12) return StoredExperts(checkpoint, "");
  if (request.preference == ExpertFormatPreference::kBF12) {
    return absl::UnimplementedError(absl::StrCat(
        kNoKernels, "; with --expert-format bf16 experts are decoded as they are read"));
  }
  std::string note =
      wants_bf16 ? "" : absl::StrCat(kNoKernels, ": experts are decoded to bf16 as they are read");
  return Recoded(std::make_unique<DecodedExperts>(checkpoint.experts()), std::move(note));
}

absl::StatusOr<ServedExperts> EncodeAsTold(const Checkpoint& checkpoint,
                                           const ExpertFormatRequest& request) {
  if (!request.kernels_take_bf12) {
    return absl::UnimplementedError(absl::StrCat(kNoKernels, "; use --expert-format auto"));
  }
  if (!backend::Bf12Supports(checkpoint.config().hidden)) {
    return absl::UnimplementedError(WhyNot(SmallestBf12(checkpoint.experts().format())));
  }
  const auto format = SampleBf12Format(checkpoint.config(), checkpoint.experts());
  if (!format.ok()) return format.status();
  return Encoded(checkpoint, *format);
}

absl::StatusOr<ServedExperts> EncodeIfItPays(const Checkpoint& checkpoint,
                                             const ExpertFormatRequest& request) {
  const auto stays = [&](const std::string& why) {
    return StoredExperts(checkpoint, absl::StrCat("experts stay bf16: ", why));
  };
  if (!request.kernels_take_bf12) return stays(kNoKernels);
  const std::string why = WhyNot(SmallestBf12(checkpoint.experts().format()));
  if (!why.empty()) return stays(why);
  const auto format = SampleBf12Format(checkpoint.config(), checkpoint.experts());
  if (!format.ok()) return format.status();
  if (const std::string sampled = WhyNot(*format); !sampled.empty()) return stays(sampled);
  const auto bytes = ComputeModelSize(checkpoint.config()).num_experts *
                     static_cast<int64_t>(format->blob_bytes());
  // Too many for host memory: they are paged.
  if (bytes > request.host_store_bytes) return StoredExperts(checkpoint, ConvertNote(checkpoint));
  return Encoded(checkpoint, *format);
}

}  // namespace

ServedExperts StoredExperts(const Checkpoint& checkpoint, std::string note) {
  ServedExperts served;
  served.source = &checkpoint.experts();
  served.note = std::move(note);
  return served;
}

absl::StatusOr<ServedExperts> ChooseExperts(const Checkpoint& checkpoint,
                                            const ExpertFormatRequest& request) {
  if (checkpoint.experts().format().kind() == ExpertFormatKind::kBF12) {
    return ChooseFromBf12(checkpoint, request);
  }
  switch (request.preference) {
    case ExpertFormatPreference::kBF16:
      return StoredExperts(checkpoint, "");
    case ExpertFormatPreference::kBF12:
      return EncodeAsTold(checkpoint, request);
    case ExpertFormatPreference::kAuto:
      break;
  }
  if (request.host_store_bytes > 0) return EncodeIfItPays(checkpoint, request);
  return StoredExperts(checkpoint, ConvertNote(checkpoint));
}

}  // namespace moed::model
