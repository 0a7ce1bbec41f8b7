// How a budget of slots is divided before any policy speaks: a few slots for scratch, a guaranteed
// floor for every layer, and the rest for whoever is hottest. Pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/expert_index.h"

namespace moed::cache {

// Who gets the slots above a layer's floor.
enum class SlotDivision : uint8_t {
  kByWorth,        // whoever is hottest
  kEqualPerLayer,  // nobody: floors divide all there is (simulations and comparisons)
};

// Slots that no admission may take, so that an expert that is not worth keeping always finds a
// place to be computed from: a sixteenth of the budget, at least one, at most 2 * top_k (beyond
// that more scratch saves few waves). None if every expert fits.
int32_t ScratchSlots(const ExpertIndex& index, int top_k, int32_t num_slots);

// [layers]: min(E, 3 * top_k, resident slots / layers with experts), the slots that no other layer
// may take. Below 3 * top_k plain recency thrashes: the experts of two tokens do not fit.
// kEqualPerLayer: without the limit of 3 * top_k.
std::vector<int32_t> LayerFloors(const ExpertIndex& index, int top_k, int32_t resident_slots,
                                 SlotDivision division = SlotDivision::kByWorth);

}  // namespace moed::cache
