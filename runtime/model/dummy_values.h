// Random weights without a file: any part of any tensor can be made at any time, at the speed of a
// copy, and is the same each time. Immutable; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/backend/dtype.h"

namespace moed::model {

// Normally distributed bf16 values of one standard deviation. A block of them is drawn once from
// the seed; a tensor is short runs of the block, begun at places that a counter-based hash of
// (seed, tensor, run) gives. So equal runs recur, which no use of dummy weights minds.
class DummyValues {
 public:
  DummyValues(uint64_t seed, float standard_deviation);

  // Values [first, first + out.size()) of the tensor `tensor_id`.
  void Fill(uint64_t tensor_id, int64_t first, std::span<backend::BFloat16> out) const;

 private:
  uint64_t seed_;
  std::vector<backend::BFloat16> block_;
};

}  // namespace moed::model
