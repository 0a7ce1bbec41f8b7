#include "runtime/model/expert_format_choice.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/backend/bf12.h"
#include "runtime/model/bf12_survey.h"
#include "runtime/model/for_each_expert.h"
#include "runtime/model/model_size.h"

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
  auto encoded = std::make_unique<EncodedExperts>(checkpoint.experts(), format);
  const EncodedExperts* const encoding = encoded.get();
  ServedExperts served = Recoded(std::move(encoded), "");
  served.encoding = encoding;
  return served;
}

// With the least room for escapes.
ExpertFormat SmallestBf12(const ExpertFormat& plain) {
  return ExpertFormat(ExpertFormatKind::kBF12, plain.hidden(), plain.intermediate(),
                      backend::Bf12TileEscapeCapacity(0));
}

// Why bf12 cannot or should not hold experts of this shape however tame, or an empty text.
std::string WhyNot(const ExpertFormat& plain) {
  if (!backend::Bf12Supports(plain.hidden())) {
    return absl::StrCat("bf12 cannot hold experts of hidden size ", plain.hidden());
  }
  return WhyBf12DoesNotPay(SmallestBf12(plain), {});
}

// A remedy that is worth its line in the log: convert, if that pays.
std::string ConvertNote(const Checkpoint& checkpoint) {
  const ExpertFormat& plain = checkpoint.experts().format();
  if (!WhyNot(plain).empty()) return "";
  return absl::StrFormat(
      "experts stay bf16; `moed convert %s DESTINATION` writes a checkpoint with the same weights, "
      "bit for bit, whose experts take %.0f %% of the bytes",
      checkpoint.directory(), 100 * SmallestBf12(plain).stored_ratio());
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

absl::StatusOr<Bf12Survey> Survey(const Checkpoint& checkpoint, bool every_expert) {
  const size_t blob_bytes = checkpoint.experts().format().blob_bytes();
  return SurveyExperts(checkpoint.experts(),
                       every_expert ? AllExperts(checkpoint.config())
                                    : SampleOfExperts(checkpoint.config(), blob_bytes),
                       ExpertThreads(0, blob_bytes));
}

absl::StatusOr<ExpertFormat> FormatFor(const ExpertFormat& plain, const Bf12Survey& survey,
                                       bool every_expert) {
  if (every_expert) return Bf12WithExactRoom(plain, survey);
  return Bf12WithRoomToSpare(plain, survey);
}

absl::StatusOr<ServedExperts> EncodeAsTold(const Checkpoint& checkpoint,
                                           const ExpertFormatRequest& request) {
  if (!request.kernels_take_bf12) {
    return absl::UnimplementedError(absl::StrCat(kNoKernels, "; use --expert-format auto"));
  }
  const ExpertFormat& plain = checkpoint.experts().format();
  if (!backend::Bf12Supports(plain.hidden())) return absl::UnimplementedError(WhyNot(plain));
  const auto survey = Survey(checkpoint, request.measure_every_expert);
  if (!survey.ok()) return survey.status();
  const auto format = FormatFor(plain, *survey, request.measure_every_expert);
  if (format.ok()) return Encoded(checkpoint, *format);
  return absl::UnimplementedError(
      absl::StrCat(format.status().message(), "; use --expert-format bf16"));
}

absl::StatusOr<ServedExperts> EncodeIfItPays(const Checkpoint& checkpoint,
                                             const ExpertFormatRequest& request) {
  const auto stays = [&](absl::string_view why) {
    return StoredExperts(checkpoint, absl::StrCat("experts stay bf16: ", why));
  };
  if (!request.kernels_take_bf12) return stays(kNoKernels);
  const ExpertFormat& plain = checkpoint.experts().format();
  if (const std::string why = WhyNot(plain); !why.empty()) return stays(why);
  const auto survey = Survey(checkpoint, request.measure_every_expert);
  if (!survey.ok()) return survey.status();
  const auto format = FormatFor(plain, *survey, request.measure_every_expert);
  if (!format.ok()) return stays(format.status().message());
  if (const std::string why = WhyBf12DoesNotPay(*format, *survey); !why.empty()) return stays(why);
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
