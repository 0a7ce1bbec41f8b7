// What a cache has learned, as bytes and back: how hot every expert is and which were resident, so
// that a restarted process is warm before it is ready. The engine writes and reads the file.
//
// Format, little-endian: magic, version, fingerprint of the model, experts in all, then per expert
// its heat (float) and residency (byte), and a checksum of everything before it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/expert_key.h"

namespace moed::cache {

struct HotSet {
  std::vector<float> heat;           // [all experts], layer by layer, in uses
  std::vector<ExpertKey> residents;  // the hottest first: the order to load them in
};

// `model` tells models apart whose shapes agree (a name, a digest of the checkpoint).
std::string SerializeHotSet(const HotSet& hot_set, std::span<const int> experts_per_layer,
                            absl::string_view model);

// DATA_LOSS: truncated or damaged; FAILED_PRECONDITION: of another version, model or shape. In
// either case start cold.
absl::StatusOr<HotSet> ParseHotSet(absl::string_view bytes, std::span<const int> experts_per_layer,
                                   absl::string_view model);

}  // namespace moed::cache
