// Owns one allocation of a backend's memory and gives it back when it goes. Moved, never copied.
#pragma once

#include <cstddef>
#include <functional>
#include <utility>

namespace moed::backend {

class Buffer {
 public:
  using Deleter = std::function<void(void* data, size_t bytes)>;

  Buffer() = default;
  Buffer(void* data, size_t bytes, Deleter deleter)
      : data_(data), bytes_(bytes), deleter_(std::move(deleter)) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(deleter_, other.deleter_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) deleter_(data_, bytes_);
  }

  bool empty() const { return data_ == nullptr; }
  size_t bytes() const { return bytes_; }
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Deleter deleter_;
};

}  // namespace moed::backend
