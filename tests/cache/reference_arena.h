// The naive reference of both drivers of the cache: it remembers what was written into every slot
// and who may be reading it, and knows the rules, but nothing of policies.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <vector>

#include "cache/expert_key.h"

namespace moed::cache {

class ReferenceArena {
 public:
  explicit ReferenceArena(int max_slots) : slots_(max_slots) {}

  // Someone is given the slot to write `key` into it: nobody may be reading it.
  void StartFill(int32_t slot, ExpertKey key, uint32_t generation) {
    ASSERT_EQ(slots_.at(slot).readers, 0) << "slot " << slot << " is rewritten under a reader";
    ASSERT_GT(generation, slots_[slot].generation) << "slot " << slot;
    slots_[slot] = {.key = key, .generation = generation, .filled = false, .readers = 0};
  }
  void EndFill(int32_t slot) { slots_.at(slot).filled = true; }

  // Someone starts to read the slot for `key`: it must hold just that.
  void StartRead(int32_t slot, ExpertKey key, uint32_t generation) {
    const Content& content = slots_.at(slot);
    ASSERT_EQ(content.key, key) << "slot " << slot << " holds another expert";
    ASSERT_EQ(content.generation, generation) << "slot " << slot;
    ++slots_[slot].readers;
  }
  void EndRead(int32_t slot) { --slots_.at(slot).readers; }

  bool filled(int32_t slot) const { return slots_.at(slot).filled; }
  int readers(int32_t slot) const { return slots_.at(slot).readers; }
  int slots_read() const {
    int count = 0;
    for (const Content& content : slots_) count += content.readers > 0 ? 1 : 0;
    return count;
  }

 private:
  struct Content {
    ExpertKey key{-1, -1};
    uint32_t generation = 0;
    bool filled = false;
    int readers = 0;
  };
  std::vector<Content> slots_;
};

// What must hold of the residents of each layer from one moment to the next.
inline void CheckFloors(const std::vector<int32_t>& before, const std::vector<int32_t>& after,
                        const std::vector<int32_t>& floors, int served_layer) {
  for (size_t layer = 0; layer < before.size(); ++layer) {
    if (static_cast<int>(layer) == served_layer || after[layer] >= before[layer]) continue;
    ASSERT_GE(after[layer], floors[layer]) << "layer " << layer << " lost a slot below its floor";
  }
}

}  // namespace moed::cache
