// Kernels that only code for compute capability 9.0a has: whether what was loaded has them. Host.
#pragma once

#include <cuda_runtime.h>

namespace moed::backend {

// Raises the limit of `kernel`, which has barriers in shared memory where it was compiled for
// warpgroup products and nowhere else. False: it was not, or the device does not take it.
template <class... Arguments>
bool PrepareWarpgroupKernel(void (*kernel)(Arguments...), int shared_bytes) {
  cudaFuncAttributes attributes;
  const bool prepared =
      cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.sharedSizeBytes > 0 &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes) ==
          cudaSuccess;
  cudaGetLastError();  // another device's refusal is no error
  return prepared;
}

}  // namespace moed::backend
