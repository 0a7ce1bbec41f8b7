// A view of dense row-major memory: pointer, element type, shape. It owns nothing; Buffer does.
// The memory belongs to one backend (host RAM for the CPU, VRAM for CUDA), and only that backend's
// ops may read it. Cheap to copy; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>

#include "runtime/backend/dtype.h"

namespace moed::backend {

class Tensor {
 public:
  Tensor() = default;
  Tensor(void* data, DType dtype, std::initializer_list<int64_t> shape)
      : data_(data), dtype_(dtype), rank_(static_cast<int>(shape.size())) {
    int i = 0;
    for (int64_t extent : shape) shape_[i++] = extent;
  }

  bool empty() const { return data_ == nullptr; }
  DType dtype() const { return dtype_; }
  int rank() const { return rank_; }
  int64_t dim(int axis) const { return shape_[axis]; }
  void* data() const { return data_; }

  // The elements as `T`; the caller knows the dtype.
  template <typename T>
  T* As() const {
    return static_cast<T*>(data_);
  }

  // Elements in all; 1 for rank 0.
  int64_t num_elements() const {
    int64_t count = 1;
    for (int i = 0; i < rank_; ++i) count *= shape_[i];
    return count;
  }
  int64_t num_bytes() const { return num_elements() * static_cast<int64_t>(SizeOf(dtype_)); }

  // The same type and shape in other memory.
  Tensor At(void* data) const {
    Tensor moved = *this;
    moved.data_ = data;
    return moved;
  }

  // Rows [begin, begin + count) of the first axis.
  Tensor Rows(int64_t begin, int64_t count) const {
    Tensor rows = *this;
    const int64_t row_bytes = shape_[0] == 0 ? 0 : num_bytes() / shape_[0];
    rows.data_ = static_cast<char*>(data_) + begin * row_bytes;
    rows.shape_[0] = count;
    return rows;
  }

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  int rank_ = 0;
  std::array<int64_t, 4> shape_ = {0, 0, 0, 0};
};

}  // namespace moed::backend
