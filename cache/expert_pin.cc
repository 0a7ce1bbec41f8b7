#include "cache/expert_pin.h"

#include "cache/slot_table.h"

namespace moed::cache {

void ExpertPin::Release() {
  if (SlotTable* slots = std::exchange(slots_, nullptr)) slots->Unpin(slot_);
}

}  // namespace moed::cache
