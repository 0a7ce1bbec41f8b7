// Hands out the ids of KV blocks and counts who holds each: sequences with the same prompt share
// its full blocks. Knows ids only, the memory behind them is the model's. Owned by the scheduler.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace moed::scheduler {

class BlockAllocator {
 public:
  explicit BlockAllocator(int num_blocks);

  int num_blocks() const { return static_cast<int>(references_.size()); }
  int num_free() const { return static_cast<int>(free_.size()); }
  int num_used() const { return num_blocks() - num_free(); }

  // A block with one reference, the most recently freed first (its memory is the warmest); nothing
  // if all are used.
  std::optional<int32_t> Allocate();
  // One more reference to a used block.
  void Share(int32_t block);
  // One reference less; the last frees the block. Both die on a block that is not used: going on
  // would give one block to two sequences.
  void Release(int32_t block);

 private:
  bool IsUsed(int32_t block) const {
    return block >= 0 && block < num_blocks() && references_[block] > 0;
  }

  std::vector<int32_t> references_;  // by block
  std::vector<int32_t> free_;        // a stack
};

}  // namespace moed::scheduler
