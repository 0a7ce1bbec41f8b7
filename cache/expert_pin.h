// The right to use one slot: while an ExpertPin lives, its slot keeps its expert. Handed out by
// ExpertCache, held by whoever reads or fills the slot, engine thread only. Include
// cache/slot_table.h or what includes it.
#pragma once

#include <cstdint>
#include <utility>

namespace moed::cache {

class SlotTable;

// Move-only; destruction or Release gives the pin back. A pin must not outlive its cache, and a pin
// on a slot that is being filled must be kept until the fill was reported: letting it go earlier
// drops the content and frees the slot for another expert.
class ExpertPin {
 public:
  ExpertPin() = default;
  ExpertPin(ExpertPin&& other) noexcept
      : slots_(std::exchange(other.slots_, nullptr)), slot_(other.slot_) {}
  ExpertPin& operator=(ExpertPin&& other) noexcept {
    if (this != &other) {
      Release();
      slots_ = std::exchange(other.slots_, nullptr);
      slot_ = other.slot_;
    }
    return *this;
  }
  ~ExpertPin();

  void Release();  // defined beside SlotTable, as is the destructor
  bool held() const { return slots_ != nullptr; }
  int32_t slot() const { return slot_; }  // once held

 private:
  friend class SlotTable;
  ExpertPin(SlotTable* slots, int32_t slot) : slots_(slots), slot_(slot) {}

  SlotTable* slots_ = nullptr;
  int32_t slot_ = -1;
};

}  // namespace moed::cache
