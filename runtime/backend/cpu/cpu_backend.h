// The CPU backend: oneDNN for dense products where it is native, own kernels elsewhere, one pool of
// threads. The reference for every other backend, and all of CI.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"

namespace moed::backend {

struct CpuBackendOptions {
  // Compute threads, the calling one included. 0: CPUs of the affinity mask and cgroup quota, less
  // one from three up.
  int num_threads = 0;
};

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options);

}  // namespace moed::backend
