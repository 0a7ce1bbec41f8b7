// What a loaded kernel was compiled for: a build for older devices only runs on a newer one too,
// from its PTX, but without the code for what the newer one has. So features are asked of the
// kernel, not of the device. Host.
#pragma once

#include <cuda_runtime.h>

namespace moed::backend {

// Whether the code between `#if __CUDA_ARCH__ >= 900` is in it.
template <class... Parameters>
bool IsCompiledForHopper(void (*kernel)(Parameters...)) {
  cudaFuncAttributes compiled = {};
  if (cudaFuncGetAttributes(&compiled, kernel) == cudaSuccess) return compiled.ptxVersion >= 90;
  cudaGetLastError();  // it will fail again where it is launched
  return false;
}

}  // namespace moed::backend
