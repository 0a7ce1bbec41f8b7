#include "cache/slot_table.h"

#include <cstdlib>

#include "absl/base/internal/raw_logging.h"

namespace moed::cache {

SlotTable::SlotTable(const ExpertIndex& index, int32_t budget, int32_t max_slots)
    : index_(index),
      slots_(max_slots),
      slot_of_(index.total_experts(), -1),
      free_(max_slots),
      first_word_(1, 0),
      layer_resident_(index.num_layers(), 0) {
  for (int layer = 0; layer < index.num_layers(); ++layer) {
    first_word_.push_back(first_word_.back() + (index.num_experts(layer) + 63) / 64);
  }
  admitted_.resize(first_word_.back(), 0);
  for (int32_t slot = max_slots - 1; slot >= 0; --slot) parked_.push_back(slot);
  SetBudget(budget);
}

void SlotTable::Die(const char* what) {
  ABSL_RAW_LOG(FATAL, "%s", what);
  std::abort();
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
  ABSL_RAW_CHECK(num_free_ > 0, "no free slot to offer");
  const int32_t slot = free_[--num_free_];
  Slot& s = slots_[slot];
  s.key = {layer, -1};
  ++s.generation;
  s.state = SlotState::kOffered;
  s.scratch = false;
  return slot;
}

void SlotTable::OfferHeld(int32_t slot) {
  ABSL_RAW_CHECK(Evictable(slot), "only an unpinned resident's slot can be offered");
  Forget(slot);
  Slot& s = slots_[slot];
  s.key.expert = -1;
  ++s.generation;
  s.state = SlotState::kOffered;
}

void SlotTable::Restore(int32_t slot, ExpertKey key, uint32_t generation) {
  FilledByDevice(slot, key);
  slots_[slot].generation = generation;
}

void SlotTable::FilledByDevice(int32_t slot, ExpertKey key) {
  Slot& s = slots_[slot];
  ABSL_RAW_CHECK(s.state == SlotState::kOffered && s.key.layer == key.layer,
                 "the device filled a slot that was not offered to this layer");
  ABSL_RAW_CHECK(SlotOf(key) < 0, "the expert has a slot already");
  s.key = key;
  s.state = SlotState::kResident;
  slot_of_[index_.Of(key)] = slot;
  Admitted(key);
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
  while (in_service_ > budget_ && num_free_ > 0) {
    const int32_t slot = free_[--num_free_];
    parked_.push_back(slot);
    slots_[slot].state = SlotState::kParked;
    --in_service_;
  }
  while (in_service_ < budget_) {
    free_[num_free_++] = parked_.back();
    slots_[parked_.back()].state = SlotState::kFree;
    parked_.pop_back();
    ++in_service_;
  }
}

}  // namespace moed::cache
