#include "runtime/model/expert_groups.h"

#include <algorithm>

#include "absl/base/internal/raw_logging.h"

namespace moed::model {

ExpertGroups::ExpertGroups(int num_experts, int top_k, int64_t max_tokens)
    : top_k_(top_k), starts_(num_experts + 1), rows_(max_tokens * top_k) {
  experts_.reserve(num_experts);
}

void ExpertGroups::Build(std::span<const int32_t> ids) {
  ABSL_RAW_CHECK(ids.size() <= rows_.size(), "more tokens than max_num_batched_tokens");
  // A counting sort. starts_[e + 1] counts expert e, then is where it begins, then where it ends.
  const int num_experts = static_cast<int>(starts_.size()) - 1;
  std::fill(starts_.begin(), starts_.end(), 0);
  for (int32_t expert : ids) {
    ABSL_RAW_CHECK(expert >= 0 && expert < num_experts, "the router chose an unknown expert");
    ++starts_[expert + 1];
  }
  experts_.clear();
  int32_t begin = 0;
  for (int expert = 0; expert < num_experts; ++expert) {
    const int32_t count = starts_[expert + 1];
    if (count > 0) experts_.push_back(expert);
    starts_[expert + 1] = begin;
    begin += count;
  }
  for (size_t row = 0; row < ids.size(); ++row) {
    rows_[starts_[ids[row] + 1]++] = static_cast<int32_t>(row);
  }
}

}  // namespace moed::model
