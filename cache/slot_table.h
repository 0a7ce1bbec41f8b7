// The state machine of slots: which expert each one holds, at which generation, who pins it. It
// knows no policy and counts nothing; both drivers of the cache act through it. Engine thread only.
//
//             Take            Filled             Evict
//   free ──────────► filling ────────► resident ───────► free
//     │                │ FillFailed        │ Retire
//     │ Offer          ▼                   ▼
//     └──► offered   dropped ──► free    retiring ──► free (Reclaim)
//             └──► resident (FilledByDevice), or retiring (Retire)
//
// A scratch slot (Take without admission) becomes free with its last pin, whatever its state; a
// slot that becomes free while there are more than the budget is parked instead.
#pragma once

#include <cstdint>
#include <span>
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
  kOffered,   // the device may fill it with an expert of one layer
  kRetiring,  // nothing new may use it, but the device may still be reading it
};

struct Slot {
  ExpertKey key;            // of an offered slot: its layer, expert -1
  uint32_t generation = 0;  // rises whenever the slot is given to another expert
  int32_t pins = 0;
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
  int32_t free_slots() const { return static_cast<int32_t>(free_.size()); }
  const Slot& slot(int32_t slot) const { return slots_[slot]; }
  // The slot that holds `key` or is being filled with it, or -1.
  int32_t SlotOf(ExpertKey key) const { return slot_of_[index_.Of(key)]; }
  // [experts of the layer]: SlotOf each.
  std::span<const int32_t> SlotsOfLayer(int layer) const {
    return {slot_of_.data() + index_.FirstOf(layer),
            static_cast<size_t>(index_.num_experts(layer))};
  }
  // [layers]: slots filling or resident, scratch not counted.
  std::span<const int32_t> layer_resident() const { return layer_resident_; }
  int32_t total_resident() const { return total_resident_; }

  bool Evictable(int32_t slot) const {
    const Slot& s = slots_[slot];
    return s.state == SlotState::kResident && s.pins == 0 && !s.scratch;
  }

  // REQUIRES: free_slots() > 0 and SlotOf(key) < 0. The slot is filling; pin it at once.
  int32_t Take(ExpertKey key, bool admitted);
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
  void Unpin(int32_t slot);
  void Forget(int32_t slot);   // removes the slot from slot_of_ and the resident counts
  void Release(int32_t slot);  // to the free list, or parked if there are too many

  ExpertIndex index_;
  std::vector<Slot> slots_;
  std::vector<int32_t> slot_of_;  // [all experts]
  std::vector<int32_t> free_;     // last in, first out: the most recently used memory first
  std::vector<int32_t> parked_;
  std::vector<int32_t> layer_resident_;
  int32_t total_resident_ = 0;
  int32_t budget_ = 0;
  int32_t in_service_ = 0;
};

}  // namespace moed::cache
