// Values for tests of a device's ops: random ones, tensors in the device's memory made of them, and
// how far two results differ.
#pragma once

#include <cmath>
#include <random>
#include <span>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/backend.h"

namespace moed::backend {

inline std::vector<float> RandomFloats(size_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

inline std::vector<BFloat16> RandomBFloat16s(size_t count, uint32_t seed, float scale = 1.0f) {
  std::vector<BFloat16> values;
  for (float value : RandomFloats(count, seed, scale)) values.push_back(ToBFloat16(value));
  return values;
}

inline double RelativeRms(const std::vector<float>& got, const std::vector<float>& want) {
  double difference = 0;
  double size = 1e-30;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    size += double{want[i]} * want[i];
  }
  return std::sqrt(difference / size);
}

// Tensors of one backend, from and to vectors.
class DeviceTensors {
 public:
  explicit DeviceTensors(Backend& backend) : backend_(backend) {}

  template <typename T>
  Tensor Put(const std::vector<T>& values, DType dtype, std::initializer_list<int64_t> shape) {
    const Tensor tensor = Make(dtype, shape);
    EXPECT_TRUE(backend_.CopyFromHost(std::as_bytes(std::span(values)), Data(tensor)).ok());
    return tensor;
  }
  Tensor Make(DType dtype, std::initializer_list<int64_t> shape) {
    const Tensor sized(nullptr, dtype, shape);
    const auto bytes = static_cast<size_t>(sized.num_bytes());
    buffers_.push_back(backend_.Allocate(bytes, MemoryKind::kDevice, "a test").value());
    const std::vector<std::byte> zeros(bytes);
    EXPECT_TRUE(backend_.CopyFromHost(zeros, buffers_.back().data()).ok());
    return sized.At(buffers_.back().data());
  }
  template <typename T>
  std::vector<T> Get(const Tensor& tensor) {
    std::vector<T> values(tensor.num_elements());
    EXPECT_TRUE(backend_.Synchronize().ok());
    EXPECT_TRUE(backend_.CopyToHost(Data(tensor), std::as_writable_bytes(std::span(values))).ok());
    return values;
  }
  std::vector<float> GetBFloat16(const Tensor& tensor) {
    std::vector<float> values;
    for (BFloat16 value : Get<BFloat16>(tensor)) values.push_back(ToFloat(value));
    return values;
  }

 private:
  static std::byte* Data(const Tensor& tensor) { return tensor.As<std::byte>(); }

  Backend& backend_;
  std::vector<Buffer> buffers_;
};

}  // namespace moed::backend
