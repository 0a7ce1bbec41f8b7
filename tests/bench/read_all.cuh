// The yardstick of every memory limit: a kernel that does nothing but read, 16 bytes a thread at a
// time, whatever its grid.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moed {

// `sink` keeps the reads from being dropped; it may be null.
static __global__ void ReadAll(const uint4* data, size_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const size_t step = size_t(gridDim.x) * blockDim.x;
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint4 value = __ldcs(data + i);
    sum += value.x ^ value.y ^ value.z ^ value.w;
  }
  if (sum == 0x12345678u && sink != nullptr) *sink = sum;
}

}  // namespace moed
