#include "cache/slot_table.h"

#include "absl/base/internal/raw_logging.h"

namespace moed::cache {

SlotTable::SlotTable(const ExpertIndex& index, int32_t budget, int32_t max_slots)
    : index_(index),
      slots_(max_slots),
      slot_of_(index.total_experts(), -1),
      layer_resident_(index.num_layers(), 0) {
  for (int32_t slot = max_slots - 1; slot >= 0; --slot) parked_.push_back(slot);
  SetBudget(budget);
}

int32_t SlotTable::Take(ExpertKey key, bool admitted) {
  ABSL_RAW_CHECK(!free_.empty(), "no free slot to take");
  int32_t& slot_of = slot_of_[index_.Of(key)];
  ABSL_RAW_CHECK(slot_of < 0, "the expert has a slot already");
  slot_of = free_.back();
  free_.pop_back();
  Slot& s = slots_[slot_of];
  s.key = key;
  ++s.generation;
  s.state = SlotState::kFilling;
  s.scratch = !admitted;
  if (admitted) {
    ++layer_resident_[key.layer];
    ++total_resident_;
  }
  return slot_of;
}

ExpertPin SlotTable::Pin(int32_t slot) {
  ++slots_[slot].pins;
  return ExpertPin(this, slot);
}

bool SlotTable::Filled(int32_t slot, uint32_t generation) {
  Slot& s = slots_[slot];
  if (s.state != SlotState::kFilling || s.generation != generation) return false;
  s.state = SlotState::kResident;
  return true;
}

bool SlotTable::FillFailed(int32_t slot, uint32_t generation) {
  Slot& s = slots_[slot];
  if (s.state != SlotState::kFilling || s.generation != generation) return false;
  Forget(slot);
  s.state = SlotState::kDropped;
  if (s.pins == 0) Release(slot);
  return true;
}

void SlotTable::Evict(int32_t slot) {
  ABSL_RAW_CHECK(Evictable(slot), "only an unpinned resident can be evicted");
  Forget(slot);
  Release(slot);
}

void SlotTable::Supersede(int32_t slot) {
  Forget(slot);
  slots_[slot].scratch = true;
  if (slots_[slot].pins == 0) Release(slot);
}

int32_t SlotTable::Offer(int layer) {
  ABSL_RAW_CHECK(!free_.empty(), "no free slot to offer");
  const int32_t slot = free_.back();
  free_.pop_back();
  Slot& s = slots_[slot];
  s.key = {layer, -1};
  ++s.generation;
  s.state = SlotState::kOffered;
  s.scratch = false;
  return slot;
}

void SlotTable::FilledByDevice(int32_t slot, ExpertKey key) {
  Slot& s = slots_[slot];
  ABSL_RAW_CHECK(s.state == SlotState::kOffered && s.key.layer == key.layer,
                 "the device filled a slot that was not offered to this layer");
  ABSL_RAW_CHECK(SlotOf(key) < 0, "the expert has a slot already");
  s.key = key;
  s.state = SlotState::kResident;
  slot_of_[index_.Of(key)] = slot;
  ++layer_resident_[key.layer];
  ++total_resident_;
}

void SlotTable::Retire(int32_t slot) {
  Slot& s = slots_[slot];
  ABSL_RAW_CHECK(Evictable(slot) || s.state == SlotState::kOffered, "the slot cannot retire");
  if (s.state == SlotState::kResident) Forget(slot);
  s.state = SlotState::kRetiring;
}

void SlotTable::Reclaim(int32_t slot) {
  ABSL_RAW_CHECK(slots_[slot].state == SlotState::kRetiring, "the slot is not retiring");
  Release(slot);
}

void SlotTable::SetBudget(int32_t budget) {
  ABSL_RAW_CHECK(budget >= 0 && budget <= max_slots(), "the budget exceeds the slots there are");
  budget_ = budget;
  while (in_service_ > budget_ && !free_.empty()) {
    parked_.push_back(free_.back());
    slots_[free_.back()].state = SlotState::kParked;
    free_.pop_back();
    --in_service_;
  }
  while (in_service_ < budget_) {
    free_.push_back(parked_.back());
    slots_[parked_.back()].state = SlotState::kFree;
    parked_.pop_back();
    ++in_service_;
  }
}

void SlotTable::Unpin(int32_t slot) {
  Slot& s = slots_[slot];
  ABSL_RAW_CHECK(s.pins > 0, "the slot has no pin to give back");
  if (--s.pins > 0) return;
  if (s.state == SlotState::kDropped) {
    Release(slot);
  } else if (s.scratch || s.state == SlotState::kFilling) {
    Forget(slot);
    Release(slot);
  }
}

void SlotTable::Forget(int32_t slot) {
  Slot& s = slots_[slot];
  int32_t& slot_of = slot_of_[index_.Of(s.key)];
  if (slot_of == slot) slot_of = -1;  // it may be superseded
  if (s.scratch) return;
  --layer_resident_[s.key.layer];
  --total_resident_;
}

void SlotTable::Release(int32_t slot) {
  if (in_service_ > budget_) {
    slots_[slot].state = SlotState::kParked;
    parked_.push_back(slot);
    --in_service_;
    return;
  }
  slots_[slot].state = SlotState::kFree;
  free_.push_back(slot);
}

}  // namespace moed::cache
