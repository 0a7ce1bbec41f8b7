// Numbers all experts of a model from 0, layer by layer, so that what is kept per expert is a flat
// array. Immutable; copied freely.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/expert_key.h"

namespace moed::cache {

class ExpertIndex {
 public:
  // `experts_per_layer`: none negative; 0 for a layer without a router.
  explicit ExpertIndex(std::span<const int> experts_per_layer) : offsets_(1, 0) {
    for (int experts : experts_per_layer) offsets_.push_back(offsets_.back() + experts);
  }

  int num_layers() const { return static_cast<int>(offsets_.size()) - 1; }
  int num_experts(int layer) const { return offsets_[layer + 1] - offsets_[layer]; }
  int total_experts() const { return offsets_.back(); }
  bool Contains(ExpertKey key) const {
    return key.layer >= 0 && key.layer < num_layers() && key.expert >= 0 &&
           key.expert < num_experts(key.layer);
  }
  // REQUIRES: Contains(key).
  int32_t Of(ExpertKey key) const { return offsets_[key.layer] + key.expert; }
  int32_t FirstOf(int layer) const { return offsets_[layer]; }

 private:
  std::vector<int32_t> offsets_;  // [layers + 1]
};

}  // namespace moed::cache
