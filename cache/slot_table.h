// The state machine of slots: which expert each one holds, at which generation, who pins it. It
// knows no policy and counts nothing; both drivers of the cache act through it. Engine thread only.
// What a step does for each expert is inline: thousands of times it is a few instructions.
//
//             Take            Filled             Evict
//   free ──────────► filling ────────► resident ───────► free
//     │                │ FillFailed        │ Retire
//     │ Offer          ▼                   ▼
//     └──► offered   dropped ──► free    retiring ──► free (Reclaim)
//             └──► resident (FilledByDevice), or retiring (Retire)
//
// A resident may be offered as well (OfferHeld), and is resident again if nothing filled its slot
// (Restore).
//
// A scratch slot (Take without admission) becomes free with its last pin, whatever its state; a
// slot that becomes free while there are more than the budget is parked instead.
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "cache/expert_index.h"
#include "cache/expert_key.h"
#include "cache/expert_pin.h"

namespace moed::cache {

enum class SlotState : uint8_t {
  kParked,    // outside of the budget
  kFree,      // holds nothing
  kFilling,   // the host is writing into it
  kResident,  // holds its expert
  kDropped,   // the fill failed; free once the last pin is gone
  kOffered,   // the device may fill it with an expert of one layer; may hold another until then
  kRetiring,  // nothing new may use it, but the device may still be reading it
};

// Sixteen bytes: a step writes thousands of them.
struct Slot {
  ExpertKey key;            // of an offered slot: its layer, expert -1
  uint32_t generation = 0;  // rises whenever the slot is given to another expert
  uint16_t pins = 0;        // one for each who uses it at the same time
  SlotState state = SlotState::kParked;
  bool scratch = false;
};

class SlotTable {
 public:
  // 0 <= budget <= max_slots.
  SlotTable(const ExpertIndex& index, int32_t budget, int32_t max_slots);
  SlotTable(const SlotTable&) = delete;
  SlotTable& operator=(const SlotTable&) = delete;

  int32_t max_slots() const { return static_cast<int32_t>(slots_.size()); }
  int32_t budget() const { return budget_; }
  // Slots in use or free: more than the budget only while pins hold what a smaller budget cut.
  int32_t in_service() const { return in_service_; }
  int32_t free_slots() const { return num_free_; }
  const Slot& slot(int32_t slot) const { return slots_[slot]; }
  // The slot that holds `key` or is being filled with it, or -1.
  int32_t SlotOf(ExpertKey key) const { return slot_of_[index_.Of(key)]; }
  // [experts of the layer]: SlotOf each.
  std::span<const int32_t> SlotsOfLayer(int layer) const {
    return {slot_of_.data() + index_.FirstOf(layer),
            static_cast<size_t>(index_.num_experts(layer))};
  }
  // Calls visit(expert, slot) for each expert of the layer that has a slot which is not scratch, by
  // rising expert.
  template <typename Visit>
  void VisitAdmitted(int layer, Visit visit) const {
    const int32_t* const slots = slot_of_.data() + index_.FirstOf(layer);
    for (int32_t word = first_word_[layer]; word < first_word_[layer + 1]; ++word) {
      const int first = (word - first_word_[layer]) * 64;
      for (uint64_t bits = admitted_[word]; bits != 0; bits &= bits - 1) {
        const int expert = first + std::countr_zero(bits);
        visit(expert, slots[expert]);
      }
    }
  }
  // [layers]: slots filling or resident, scratch not counted.
  std::span<const int32_t> layer_resident() const { return layer_resident_; }
  int32_t total_resident() const { return total_resident_; }

  bool Evictable(int32_t slot) const {
    const Slot& s = slots_[slot];
    // Without a branch: often asked of many slots, whose answers no predictor can know.
    return (static_cast<int>(s.state == SlotState::kResident) & static_cast<int>(s.pins == 0) &
            static_cast<int>(!s.scratch)) != 0;
  }

  // A slot that is filling, pinned. REQUIRES: free_slots() > 0 and SlotOf(key) < 0.
  ExpertPin Take(ExpertKey key, bool admitted);
  // Take without admission for each of `experts` of the layer, the last first, until one has a slot
  // or none is free: calls granted(expert, pin, generation). Returns how many are left.
  template <typename Granted>
  size_t TakeScratch(int layer, std::span<const int> experts, Granted granted);
  // REQUIRES: filling or resident.
  ExpertPin Pin(int32_t slot);
  // False if the slot is not being filled at this generation.
  bool Filled(int32_t slot, uint32_t generation);
  bool FillFailed(int32_t slot, uint32_t generation);
  // REQUIRES: Evictable(slot).
  void Evict(int32_t slot);

  // The slot's expert got another slot: the content goes with the last pin, as if scratch.
  // REQUIRES: filling or resident.
  void Supersede(int32_t slot);

  // Gives a free slot to the device, for any expert of `layer`. REQUIRES: free_slots() > 0.
  int32_t Offer(int layer);
  // The same with a slot that an expert of the layer holds, which loses it here; until the device
  // fills the slot it may read that expert there. REQUIRES: Evictable(slot).
  void OfferHeld(int32_t slot);
  // Gives the slot back to the expert that held it when it was offered, at that generation.
  // REQUIRES: offered for key's layer, not filled since, and SlotOf(key) < 0.
  void Restore(int32_t slot, ExpertKey key, uint32_t generation);
  // REQUIRES: the slot is offered for key's layer, and SlotOf(key) < 0.
  void FilledByDevice(int32_t slot, ExpertKey key);
  // REQUIRES: Evictable(slot), or offered.
  void Retire(int32_t slot);
  // REQUIRES: retiring.
  void Reclaim(int32_t slot);

  // 0 <= budget <= max_slots. Parks free slots, or brings parked ones back; what is in use stays.
  void SetBudget(int32_t budget);

 private:
  friend class ExpertPin;
  // A broken invariant. Does not return, and so costs what is inline no registers.
  [[noreturn]] static void Die(const char* what);
  void Unpin(int32_t slot);
  void Admitted(ExpertKey key);
  void Forget(int32_t slot);   // removes the slot from slot_of_ and from what is admitted
  void Release(int32_t slot);  // to the free list, or parked if there are too many

  ExpertIndex index_;
  std::vector<Slot> slots_;
  std::vector<int32_t> slot_of_;  // [all experts]
  // [max_slots], of which num_free_ count; last in, first out: the most recently used memory first.
  std::vector<int32_t> free_;
  int32_t num_free_ = 0;
  std::vector<int32_t> parked_;
  std::vector<uint64_t> admitted_;  // a bit for each expert, layers beginning at words of their own
  std::vector<int32_t> first_word_;  // [layers + 1]
  std::vector<int32_t> layer_resident_;
  int32_t total_resident_ = 0;
  int32_t budget_ = 0;
  int32_t in_service_ = 0;
};

inline ExpertPin SlotTable::Take(ExpertKey key, bool admitted) {
  if (num_free_ <= 0) Die("no free slot to take");
  int32_t& slot_of = slot_of_[index_.Of(key)];
  if (slot_of >= 0) Die("the expert has a slot already");
  const int32_t slot = free_[--num_free_];
  slot_of = slot;
  Slot& s = slots_[slot];
  s.key = key;
  ++s.generation;
  s.pins = 1;
  s.state = SlotState::kFilling;
  s.scratch = !admitted;
  if (admitted) Admitted(key);
  return ExpertPin(this, slot);
}

template <typename Granted>
size_t SlotTable::TakeScratch(int layer, std::span<const int> experts, Granted granted) {
  int32_t* const slot_of = slot_of_.data() + index_.FirstOf(layer);
  size_t left = experts.size();
  for (; left > 0 && num_free_ > 0; --left) {
    const int expert = experts[left - 1];
    if (slot_of[expert] >= 0) break;
    const int32_t slot = free_[--num_free_];
    slot_of[expert] = slot;
    Slot& s = slots_[slot];
    s = {.key = {layer, expert},
         .generation = s.generation + 1,
         .pins = 1,
         .state = SlotState::kFilling,
         .scratch = true};
    granted(expert, ExpertPin(this, slot), s.generation);
  }
  return left;
}

inline void SlotTable::Admitted(ExpertKey key) {
  admitted_[first_word_[key.layer] + key.expert / 64] |= uint64_t{1} << key.expert % 64;
  ++layer_resident_[key.layer];
  ++total_resident_;
}

inline ExpertPin SlotTable::Pin(int32_t slot) {
  if (++slots_[slot].pins == 0) Die("the slot has too many pins");
  return ExpertPin(this, slot);
}

inline bool SlotTable::Filled(int32_t slot, uint32_t generation) {
  Slot& s = slots_[slot];
  if (s.state != SlotState::kFilling || s.generation != generation) return false;
  s.state = SlotState::kResident;
  return true;
}

inline void SlotTable::Unpin(int32_t slot) {
  Slot& s = slots_[slot];
  if (s.pins == 0) Die("the slot has no pin to give back");
  if (--s.pins > 0) return;
  if (!s.scratch && s.state == SlotState::kResident) return;
  if (s.state != SlotState::kDropped) Forget(slot);
  Release(slot);
}

inline void SlotTable::Forget(int32_t slot) {
  Slot& s = slots_[slot];
  int32_t& slot_of = slot_of_[index_.Of(s.key)];
  if (slot_of == slot) slot_of = -1;  // it may be superseded
  if (s.scratch) return;
  admitted_[first_word_[s.key.layer] + s.key.expert / 64] &= ~(uint64_t{1} << s.key.expert % 64);
  --layer_resident_[s.key.layer];
  --total_resident_;
}

inline void SlotTable::Release(int32_t slot) {
  if (in_service_ > budget_) {
    slots_[slot].state = SlotState::kParked;
    parked_.push_back(slot);
    --in_service_;
    return;
  }
  slots_[slot].state = SlotState::kFree;
  free_[num_free_++] = slot;
}

inline ExpertPin::~ExpertPin() {
  if (slots_ != nullptr) slots_->Unpin(slot_);
}

inline void ExpertPin::Release() {
  if (SlotTable* slots = std::exchange(slots_, nullptr)) slots->Unpin(slot_);
}

}  // namespace moed::cache
