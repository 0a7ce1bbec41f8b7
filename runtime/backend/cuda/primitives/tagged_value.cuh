// Values that blocks of one launch leave one another in device memory, each with the launch's
// number in the same eight bytes: who reads one sees by it whether it is there yet. That takes one
// trip to memory, where a barrier takes a fence and three. Memory that was never written holds
// zeros, so no launch has the number 0.
#pragma once

#include <cstdint>

namespace moed::backend {

// The number of the launch after `launch`, which is 0 before the first.
__host__ __device__ constexpr uint32_t NextLaunch(uint32_t launch) {
  return launch == UINT32_MAX ? 1 : launch + 1;
}
static_assert(NextLaunch(0) == 1 && NextLaunch(1) == 2 && NextLaunch(UINT32_MAX) == 1);

__device__ __forceinline__ void StoreTagged(uint64_t* to, float value, uint32_t launch) {
  const uint64_t word = uint64_t{launch} << 32 | __float_as_uint(value);
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

// Whether the value is there; else what is returned in it is nothing.
__device__ __forceinline__ bool LoadTagged(const uint64_t* from, uint32_t launch, float* value) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
  *value = __uint_as_float(static_cast<uint32_t>(word));
  return word >> 32 == launch;
}
// The same of two, at a multiple of 16 bytes.
__device__ __forceinline__ bool LoadTagged(const uint64_t* from, uint32_t launch, float2* values) {
  uint64_t first;
  uint64_t second;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(first), "=l"(second)
               : "l"(from)
               : "memory");
  *values = make_float2(__uint_as_float(static_cast<uint32_t>(first)),
                        __uint_as_float(static_cast<uint32_t>(second)));
  return first >> 32 == launch && second >> 32 == launch;
}

}  // namespace moed::backend
