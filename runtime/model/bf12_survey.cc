#include "runtime/model/bf12_survey.h"

#include <mutex>
#include <tuple>

#include "absl/strings/str_format.h"
#include "runtime/model/for_each_expert.h"

namespace moed::model {
namespace {

using backend::ExpertFormat;
using backend::ExpertFormatKind;

// A sample of large experts stops here; they then come from every second layer, or fewer.
constexpr size_t kMostSampledBytes = size_t{4} << 30;

ExpertFormat Bf12With(const ExpertFormat& plain, int tile_escapes) {
  return ExpertFormat(ExpertFormatKind::kBF12, plain.hidden(), plain.intermediate(), tile_escapes);
}

bool Before(cache::ExpertKey a, cache::ExpertKey b) {
  return std::tie(a.layer, a.expert) < std::tie(b.layer, b.expert);
}

}  // namespace

void Bf12Survey::Add(cache::ExpertKey key, const backend::Bf12ListedEscapes& escapes) {
  const bool wilder = num_experts == 0 || escapes.most_in_tile > most_in_tile;
  if (wilder || (escapes.most_in_tile == most_in_tile && Before(key, wildest))) {
    most_in_tile = escapes.most_in_tile;
    wildest = key;
  }
  ++num_experts;
  listed_escapes += escapes.total;
}

absl::StatusOr<Bf12Survey> SurveyExperts(const ExpertSource& source,
                                         std::span<const cache::ExpertKey> keys, int threads,
                                         const std::function<absl::Status()>& done) {
  std::mutex mutex;
  Bf12Survey survey;  // guarded by mutex
  absl::Status status = ForEachExpert(keys, threads, [&](cache::ExpertKey key) {
    const auto blob = ExpertScratch(ScratchPurpose::kSource, source.format().blob_bytes());
    if (!blob.ok()) return blob.status();
    if (absl::Status read = source.Read(key, {}, *blob); !read.ok()) return read;
    const backend::Bf12ListedEscapes escapes = backend::MeasureBf12Escapes(source.format(), *blob);
    {
      const std::lock_guard lock(mutex);
      survey.Add(key, escapes);
    }
    return done ? done() : absl::OkStatus();
  });
  if (!status.ok()) return status;
  return survey;
}

std::vector<cache::ExpertKey> SampleOfExperts(const ModelConfig& config, size_t blob_bytes) {
  std::vector<cache::ExpertKey> sample;
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    if (config.layers[layer].is_moe) sample.push_back({layer, layer % config.router.num_experts});
  }
  const size_t stride = 1 + sample.size() * blob_bytes / kMostSampledBytes;
  std::vector<cache::ExpertKey> kept;
  for (size_t i = 0; i < sample.size(); i += stride) kept.push_back(sample[i]);
  return kept;
}

ExpertFormat Bf12WithRoomToSpare(const ExpertFormat& plain, const Bf12Survey& survey) {
  return Bf12With(plain, backend::Bf12TileEscapeCapacity(survey.most_in_tile));
}

absl::StatusOr<ExpertFormat> Bf12WithExactRoom(const ExpertFormat& plain,
                                               const Bf12Survey& survey) {
  const int capacity = backend::Bf12ExactTileEscapeCapacity(survey.most_in_tile);
  if (capacity >= 0) return Bf12With(plain, capacity);
  return absl::UnimplementedError(absl::StrFormat(
      "%d weights in 32 neurons of expert %d of layer %d lie outside of any window of 16 "
      "exponents, and bf12 has room for %d",
      survey.most_in_tile, survey.wildest.expert, survey.wildest.layer,
      backend::kBf12MostTileEscapes));
}

std::string WhyBf12DoesNotPay(const ExpertFormat& format, const Bf12Survey& survey,
                              double most_stored_ratio) {
  if (format.stored_ratio() > most_stored_ratio) {
    std::string why = absl::StrFormat("in bf12 they would take %.1f %% of their bytes",
                                      100 * format.stored_ratio());
    if (survey.most_in_tile > 0) {
      absl::StrAppendFormat(&why, " (expert %d of layer %d lists %d escapes in 32 neurons)",
                            survey.wildest.expert, survey.wildest.layer, survey.most_in_tile);
    }
    return why;
  }
  const int64_t weights = survey.num_experts * 3 * format.hidden() * format.intermediate();
  if (survey.listed_escapes * kLeastWeightsPerEscape <= weights) return "";
  return absl::StrFormat(
      "%.2f %% of their weights lie outside of windows of 16 exponents, which bf12 lists one by "
      "one",
      100 * static_cast<double>(survey.listed_escapes) / static_cast<double>(weights));
}

}  // namespace moed::model
