#include <cuda_runtime.h>

#include "runtime/backend/cuda/device/compiled_kernel.h"

namespace moed::backend {
namespace {

__global__ void CompiledLikeAll() {}

bool AskKernel() {
  cudaFuncAttributes compiled = {};
  if (cudaFuncGetAttributes(&compiled, CompiledLikeAll) == cudaSuccess) {
    return compiled.ptxVersion >= 90;
  }
  cudaGetLastError();  // launches fail with it again
  return false;
}

}  // namespace

bool KernelsAreCompiledForHopper() {
  static const bool compiled = AskKernel();
  return compiled;
}

}  // namespace moed::backend
