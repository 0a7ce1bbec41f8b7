// Things and what each is worth, side by side: what a decision collects and then thins out. Kept
// from decision to decision for its memory. Owned by AdmissionPlanner, engine thread only.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace moed::cache {

// Nothing branches on what is kept, which no predictor can know.
template <typename T>
class WorthList {
 public:
  // Empty, with room for `most`.
  void Start(size_t most) {
    if (items_.size() < most) items_.resize(most);
    if (worths_.size() < most) worths_.resize(most);
    count_ = 0;
  }
  // REQUIRES: fewer were added since Start than it made room for; what is not kept needs room too.
  void AddIf(bool keep, const T& item, double worth) {
    items_[count_] = item;
    worths_[count_] = worth;
    count_ += keep ? 1 : 0;
  }
  // Drops those for whose worth keep(worth) is false.
  template <typename Keep>
  void KeepIf(Keep keep) {
    const size_t count = count_;
    count_ = 0;
    for (size_t i = 0; i < count; ++i) AddIf(keep(worths_[i]), items_[i], worths_[i]);
  }

  bool empty() const { return count_ == 0; }
  size_t size() const { return count_; }
  std::span<const T> items() const { return {items_.data(), count_}; }
  std::span<const double> worths() const { return {worths_.data(), count_}; }

 private:
  std::vector<T> items_;
  std::vector<double> worths_;
  size_t count_ = 0;
};

}  // namespace moed::cache
