// How much memory the resident experts may take, as a user writes it, and the slots that it buys.
// Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace moed::model {

struct ExpertBudget {
  enum class Kind : uint8_t { kAuto, kBytes, kPercent, kSlots };
  Kind kind = Kind::kAuto;
  double amount = 0;  // bytes, percent of all experts, or slots
};

// "auto", "6GiB" (also KiB, MiB, TiB), "12.5%" or "96slots".
// INVALID_ARGUMENT, listing these forms, for anything else.
absl::StatusOr<ExpertBudget> ParseExpertBudget(std::string_view text);

struct ExpertDemand {
  int64_t num_experts = 0;      // of all layers
  int64_t expert_bytes = 0;     // of one slot
  int top_k = 0;                // the fewest slots that can run a layer
  int64_t available_bytes = 0;  // what is left for experts by everything else
};

// The slots that `budget` buys, never more than there are experts.
// RESOURCE_EXHAUSTED: fewer than top_k slots, naming the smallest legal budget, or more than
// available_bytes.
absl::StatusOr<int> ResolveExpertSlots(const ExpertBudget& budget, const ExpertDemand& demand);

}  // namespace moed::model
