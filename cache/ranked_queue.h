// Some experts of a policy's view in order of their worth: what MakePlan takes candidates and
// victims from. Lives as long as one plan; engine thread only.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>

#include "absl/container/inlined_vector.h"
#include "cache/policy.h"

namespace moed::cache {

enum class Order : uint8_t { kLeastWorthFirst, kMostWorthFirst };

// Whether `a`, of as much worth as `b`, comes before it among the least worthy: ties go by last use
// and then by key, so that a plan depends on nothing but the view.
inline bool TieLess(const ExpertView& a, const ExpertView& b) {
  if (a.last_use_step != b.last_use_step) return a.last_use_step < b.last_use_step;
  return a.key < b.key;
}

// The first few are looked for one after the other, each in one pass over numbers side by side; if
// more are asked for, the rest is sorted. Both without a branch on what no predictor can know.
template <Order kOrder>
class RankedQueue {
 public:
  explicit RankedQueue(std::span<const ExpertView> experts)
      : experts_(experts), rank_memory_(experts.size()), index_memory_(experts.size()) {}
  RankedQueue(const RankedQueue&) = delete;
  RankedQueue& operator=(const RankedQueue&) = delete;

  void Add(double worth, size_t index) {
    if (std::isnan(worth)) worth = 0;  // a router's: it has no place in any order
    ranks_[count_] = kOrder == Order::kLeastWorthFirst ? worth : -worth;
    indices_[count_++] = static_cast<int32_t>(index);
  }
  void Arrange() {
    if (count_ <= kFew) return Sort();
    FindFirst();
  }
  bool empty() const { return first_ == count_; }
  // Of the first: its place in the view, and its worth.
  int32_t index() const { return indices_[first_]; }
  const ExpertView& expert() const { return experts_[index()]; }
  double worth() const {
    return kOrder == Order::kLeastWorthFirst ? ranks_[first_] : -ranks_[first_];
  }
  void Pop() {
    if (sorted_) {
      ++first_;
      return;
    }
    --count_;
    ranks_[first_] = ranks_[count_];
    indices_[first_] = indices_[count_];
    first_ = 0;
    if (++searches_ == kSearches) return Sort();
    Arrange();
  }

 private:
  static constexpr size_t kInline = 128;
  // So few are sorted at once.
  static constexpr size_t kFew = 24;
  // Beyond so many searches one sort is less work.
  static constexpr int kSearches = 4;
  // Two numbers that the CPU compares at once; the compiler does not find that by itself.
  using Pair = double __attribute__((vector_size(16)));
  using Counts = int64_t __attribute__((vector_size(16)));
  using Ranks = absl::InlinedVector<double, kInline>;
  using Indices = absl::InlinedVector<int32_t, kInline>;

  void FindFirst() {
    const double least = Least(ranks_, count_);
    first_ = static_cast<size_t>(std::find(ranks_, ranks_ + count_, least) - ranks_);
    for (size_t i = first_ + 1; i < count_; ++i) {
      if (ranks_[i] == least && TieBefore(indices_[i], indices_[first_])) first_ = i;
    }
  }
  // Each goes where the number of those before it says.
  void Sort() {
    sorted_ = true;
    const size_t count = count_;
    if (count < 2) return;
    if (count > kInline) return SortByComparing();
    std::array<Pair, kInline / 2> pairs;
    std::array<int32_t, kInline> indices;
    const size_t num_pairs = (count + 1) / 2;
    pairs[num_pairs - 1] = Pair{} + std::numeric_limits<double>::infinity();
    std::memcpy(pairs.data(), ranks_, count * sizeof(double));
    std::copy_n(indices_, count, indices.begin());
    std::fill_n(indices_, count, -1);
    bool distinct = true;
    for (size_t i = 0; i < count; ++i) {
      const double rank = pairs[i / 2][i % 2];
      const int64_t place = CountBelow(std::span(pairs.data(), num_pairs), rank);
      distinct = distinct && indices_[place] < 0;
      ranks_[place] = rank;
      indices_[place] = indices[i];
    }
    if (distinct) return;
    std::memcpy(ranks_, pairs.data(), count * sizeof(double));
    std::copy_n(indices.begin(), count, indices_);
    SortByComparing();
  }
  static int64_t CountBelow(std::span<const Pair> pairs, double rank) {
    const Pair limit = {rank, rank};
    Counts below = {};
    for (const Pair& pair : pairs) below -= pair < limit;  // which is -1 or 0
    return below[0] + below[1];
  }
  void SortByComparing() {
    Indices order(count_);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [this](int32_t a, int32_t b) {
      if (ranks_[a] != ranks_[b]) return ranks_[a] < ranks_[b];
      return TieBefore(indices_[a], indices_[b]);
    });
    const Ranks ranks(ranks_, ranks_ + count_);
    const Indices indices(indices_, indices_ + count_);
    for (size_t i = 0; i < order.size(); ++i) {
      ranks_[i] = ranks[order[i]];
      indices_[i] = indices[order[i]];
    }
  }
  // In four lanes, for a chain of comparisons is as slow as it is long.
  static double Least(const double* ranks, size_t count) {
    std::array<double, 4> least = {ranks[0], ranks[0], ranks[0], ranks[0]};
    size_t i = 0;
    for (; i + 4 <= count; i += 4) {
      for (size_t lane = 0; lane < 4; ++lane) least[lane] = std::min(least[lane], ranks[i + lane]);
    }
    for (; i < count; ++i) least[0] = std::min(least[0], ranks[i]);
    return std::min(std::min(least[0], least[1]), std::min(least[2], least[3]));
  }
  bool TieBefore(int32_t a, int32_t b) const {
    return kOrder == Order::kLeastWorthFirst ? TieLess(experts_[a], experts_[b])
                                             : TieLess(experts_[b], experts_[a]);
  }

  std::span<const ExpertView> experts_;
  Ranks rank_memory_;
  Indices index_memory_;
  double* const ranks_ = rank_memory_.data();  // [count_]: the least first
  int32_t* const indices_ = index_memory_.data();
  size_t count_ = 0;
  size_t first_ = 0;
  int searches_ = 0;
  bool sorted_ = false;
};

}  // namespace moed::cache
