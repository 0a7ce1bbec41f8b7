// Stands in for cuda/ in builds without it.
#include "runtime/backend/cuda/cuda_backend.h"

namespace moed::backend {

bool CudaAvailable() { return false; }

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaBackendOptions&) {
  return absl::UnimplementedError(
      "this build has no CUDA; configure with -DMOED_CUDA=ON (scripts/build cuda-release), or run "
      "with --device cpu");
}

}  // namespace moed::backend
