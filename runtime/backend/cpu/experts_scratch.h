// What the parts of the Experts op share: the call they serve, and memory that grows to the largest
// call and is kept, since fresh pages would cost more than the work on them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hwy/aligned_allocator.h"
#include "runtime/backend/expert_format.h"

namespace moed::backend {

struct ExpertsCall {
  const ExpertFormat& format;
  int top_k = 1;
  const BFloat16* x = nullptr;  // [T, format.row_values()]
  float* out = nullptr;         // [T * top_k, format.hidden()]

  const BFloat16* XRow(int32_t row) const { return x + row / top_k * format.row_values(); }
  float* OutRow(int32_t row) const { return out + row * format.hidden(); }
};

// Uninitialised values aligned for any vector. One owner, one thread at a time.
template <typename T>
class Scratch {
 public:
  // Room for `count` values; what it held is lost when it grows.
  T* Reserve(size_t count) {
    if (count > capacity_) {
      values_ = hwy::AllocateAligned<T>(count);
      capacity_ = count;
    }
    return get();
  }
  T* get() const { return values_.get(); }

 private:
  hwy::AlignedFreeUniquePtr<T[]> values_;
  size_t capacity_ = 0;
};

}  // namespace moed::backend
