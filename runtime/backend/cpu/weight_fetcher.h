// Fetches the weights that a thread multiplies next into its L2 cache while it multiplies others:
// in the order in which they lie there, as much as it reads itself. Evenly spread over the time
// that its steps take, since a burst of fetches, or the few that the L1 cache may have in flight,
// reach half the memory's rate. One thread's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moed::backend {

class WeightFetcher {
 public:
  // From `next` on.
  explicit WeightFetcher(const std::byte* next) : next_(next) {}

  template <int64_t kBytes>
  [[gnu::always_inline]] void Fetch() {
#pragma GCC unroll 16
    for (int64_t i = 0; i < kBytes; i += kLine) {
      __builtin_prefetch(next_ + i, /*rw=*/0, /*locality=*/2);
    }
    next_ += kBytes;
  }

 private:
  static constexpr int64_t kLine = 64;

  const std::byte* next_;
};

// In its place where all is fetched already.
struct NothingToFetch {
  template <int64_t kBytes>
  void Fetch() {}
};

}  // namespace moed::backend
