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

// By all threads of a block of kWarps warps, after a barrier: output [columns] += what each warp
// left in sums [kWarps, columns]. columns: a multiple of 4.
template <int kWarps>
__device__ void AddWarpSums(const float* sums, int columns, float* output) {
  for (int column = threadIdx.x * 4; column < columns; column += kWarps * 32 * 4) {
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      total = Add4(total, *reinterpret_cast<const float4*>(sums + w * columns + column));
    }
    AddToGlobal(output + column, total);
  }
}

}  // namespace moed::backend
