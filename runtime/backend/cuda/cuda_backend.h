// The CUDA backend's entry point; with MOED_CUDA=OFF runtime/backend/no_cuda links in its place.
#pragma once

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"

namespace moed::backend {

struct CudaBackendOptions {
  int device = 0;
  // Of one allocation of host memory; larger ones are refused as if they could not be pinned. 0: no
  // limit of moed's own.
  size_t most_pinned_bytes = 0;
};

// True if this build has CUDA and a device answers.
bool CudaAvailable();

// UNIMPLEMENTED if the build has no CUDA, UNAVAILABLE if no device or driver answers.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaBackendOptions& options);

}  // namespace moed::backend
