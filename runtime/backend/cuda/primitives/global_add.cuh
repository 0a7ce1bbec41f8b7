// Adding four neighbouring floats to global memory that other blocks add to as well: one request on
// Hopper and later.
#pragma once

#include <cuda_runtime.h>

namespace moed::backend {

// `target` is aligned to 16 bytes.
__device__ __forceinline__ void AddToGlobal(float* target, const float4& value) {
#if __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float4*>(target), value);
#else
  atomicAdd(target, value.x);
  atomicAdd(target + 1, value.y);
  atomicAdd(target + 2, value.z);
  atomicAdd(target + 3, value.w);
#endif
}

// a + b, each of the four.
__device__ __forceinline__ float4 Add4(const float4& a, const float4& b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

}  // namespace moed::backend
