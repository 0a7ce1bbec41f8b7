#include "cache/slot_floors.h"

#include <algorithm>

namespace moed::cache {

int32_t ScratchSlots(const ExpertIndex& index, int top_k, int32_t num_slots) {
  if (num_slots >= index.total_experts()) return 0;
  return std::clamp(num_slots / 16, 1, 2 * top_k);
}

std::vector<int32_t> LayerFloors(const ExpertIndex& index, int top_k, int32_t resident_slots,
                                 SlotDivision division) {
  int layers_with_experts = 0;
  for (int layer = 0; layer < index.num_layers(); ++layer) {
    layers_with_experts += index.num_experts(layer) > 0 ? 1 : 0;
  }
  const int32_t share = std::max(resident_slots, 0) / std::max(layers_with_experts, 1);
  const int32_t limit = division == SlotDivision::kEqualPerLayer ? share : 3 * top_k;
  std::vector<int32_t> floors(index.num_layers());
  for (int layer = 0; layer < index.num_layers(); ++layer) {
    floors[layer] = std::min({index.num_experts(layer), limit, share});
  }
  return floors;
}

}  // namespace moed::cache
