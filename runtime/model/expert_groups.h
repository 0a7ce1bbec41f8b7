// One layer's routing turned round: for each expert that some token chose, its (token, rank) pairs.
// Scratch is taken once and reused from layer to layer. Engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace moed::model {

class ExpertGroups {
 public:
  ExpertGroups(int num_experts, int top_k, int64_t max_tokens);

  // Groups `ids` [tokens * k], the experts of token t at ranks 0..k-1 in ids[t * k ...]: each in
  // [0, num_experts), those of one token distinct.
  void Build(std::span<const int32_t> ids);

  // Experts chosen by at least one token, rising.
  std::span<const int> experts() const { return experts_; }
  // The pairs of `expert` as t * k + rank, rising.
  std::span<const int32_t> rows(int expert) const {
    return std::span(rows_).subspan(starts_[expert], starts_[expert + 1] - starts_[expert]);
  }
  int top_k() const { return top_k_; }

 private:
  int top_k_;
  std::vector<int> experts_;
  std::vector<int32_t> starts_;  // [num_experts + 1] into rows_
  std::vector<int32_t> rows_;    // [tokens * k], by expert
};

}  // namespace moed::model
