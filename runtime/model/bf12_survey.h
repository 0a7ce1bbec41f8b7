// What the experts of a model ask of bf12 (backend/bf12.h): how many escapes its lists must hold,
// measured of a sample or of every expert, and whether bf12 then pays. Read by threads that live as
// long as a call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache/expert_key.h"
#include "runtime/backend/bf12.h"
#include "runtime/backend/expert_format.h"
#include "runtime/model/expert_source.h"
#include "runtime/model/model_config.h"

namespace moed::model {

// More than this share of the bf16 bytes is not worth another format.
inline constexpr double kMostStoredRatio = 0.85;
// Nor are more listed escapes than one in so many weights: each costs a kernel as much as dozens of
// weights.
inline constexpr int64_t kLeastWeightsPerEscape = 1000;

struct Bf12Survey {
  int64_t num_experts = 0;
  int64_t listed_escapes = 0;  // of all these experts
  int64_t most_in_tile = 0;    // listed in one tile
  cache::ExpertKey wildest;    // the expert that has it, the first of several

  void Add(cache::ExpertKey key, const backend::Bf12ListedEscapes& escapes);
};

// Measures the experts `keys` of `source`, which are bf16, by `threads` threads. After each expert
// `done` is called, if set, from any of them; its error ends the survey. The source's errors.
absl::StatusOr<Bf12Survey> SurveyExperts(const ExpertSource& source,
                                         std::span<const cache::ExpertKey> keys, int threads,
                                         const std::function<absl::Status()>& done = {});

// One expert of each layer, another one in each; of fewer layers where experts are large.
std::vector<cache::ExpertKey> SampleOfExperts(const ModelConfig& config, size_t blob_bytes);

// bf12 for all experts of which `survey` saw some, or each of them; `plain` is their bf16 format.
backend::ExpertFormat Bf12WithRoomToSpare(const backend::ExpertFormat& plain,
                                          const Bf12Survey& survey);
// UNIMPLEMENTED, naming the expert: no list holds the escapes of its fullest tile.
absl::StatusOr<backend::ExpertFormat> Bf12WithExactRoom(const backend::ExpertFormat& plain,
                                                        const Bf12Survey& survey);

// Why the bf12 `format`, with room for what `survey` found, is not worth it, or an empty text.
std::string WhyBf12DoesNotPay(const backend::ExpertFormat& format, const Bf12Survey& survey,
                              double most_stored_ratio = kMostStoredRatio);

}  // namespace moed::model
