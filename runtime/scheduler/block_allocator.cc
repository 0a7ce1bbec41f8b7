#include "runtime/scheduler/block_allocator.h"

#include "absl/base/internal/raw_logging.h"

namespace moed::scheduler {

BlockAllocator::BlockAllocator(int num_blocks) : references_(num_blocks, 0) {
  free_.reserve(num_blocks);
  for (int32_t block = num_blocks - 1; block >= 0; --block) free_.push_back(block);
}

std::optional<int32_t> BlockAllocator::Allocate() {
  if (free_.empty()) return std::nullopt;
  const int32_t block = free_.back();
  free_.pop_back();
  references_[block] = 1;
  return block;
}

void BlockAllocator::Share(int32_t block) {
  ABSL_RAW_CHECK(IsUsed(block), "a KV block is shared that nobody holds");
  ++references_[block];
}

void BlockAllocator::Release(int32_t block) {
  ABSL_RAW_CHECK(IsUsed(block), "a KV block is released that nobody holds");
  if (--references_[block] == 0) free_.push_back(block);
}

}  // namespace moed::scheduler
