// Kernels that begin while those ahead of them still run (programmatic dependent launch, Hopper and
// later): what they do before WaitForKernelAhead() must not touch what a kernel of the step writes,
// since more than the last may still run. Before Hopper they begin when the one ahead has ended.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>

#include "runtime/backend/cuda/device/compiled_kernel.h"

namespace moed::backend {

// Every thread of a kernel that LaunchAhead launches calls it: the kernel ahead has then ended, and
// so has every one before, because each of them waits likewise.
__device__ __forceinline__ void WaitForKernelAhead() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel, if LaunchAhead launches it, begins once all blocks called this or ended and
// leave room for it. So all blocks of a kernel run before the first of the next one: blocks that
// wait for others of their own launch are kept from it by no later kernel.
__device__ __forceinline__ void LetNextKernelBegin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
};

// At least `bytes` of shared memory, and so many that no multiprocessor takes two blocks: blocks
// that begin before those of the kernel ahead have ended would gather where these end first.
inline size_t SharedBytesOfOneBlock(size_t bytes) {
  int device = 0;
  int all = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  return std::max(bytes, size_t(all) / 2);
}

// Can be captured in a graph.
template <class... Parameters, class... Arguments>
cudaError_t LaunchAhead(void (*kernel)(Parameters...), const LaunchShape& shape,
                        cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attribute = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  // Kernels compiled for an older device would not wait.
  if (KernelsAreCompiledForHopper()) {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.numAttrs = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace moed::backend
