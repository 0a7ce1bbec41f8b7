#include <memory>
#include <utility>

#include "runtime/backend/cuda/device/cuda_status.h"
#include "runtime/backend/cuda/device/pinned_memory.h"
#include "runtime/backend/host_memory.h"

namespace moed::backend {

// Registering huge pages is several times as fast as cudaMallocHost.
absl::StatusOr<Buffer> AllocatePinnedMemory(size_t bytes, std::string_view what) {
  if (bytes == 0) return Buffer();
  absl::StatusOr<Buffer> pages = AllocateHostMemory(bytes, what);
  if (!pages.ok()) return pages.status();
  const cudaError_t error = cudaHostRegister(pages->data(), bytes, cudaHostRegisterMapped);
  if (error != cudaSuccess) {
    cudaGetLastError();  // not sticky: nothing was done
    return absl::FailedPreconditionError(
        absl::StrCat("pinning ", bytes, " bytes of host memory for ", std::string(what),
                     " failed: ", cudaGetErrorString(error),
                     "; raise the limit of locked memory (ulimit -l) or the container's memory"));
  }
  // Shared, because a Buffer's deleter must be copyable.
  auto owner = std::make_shared<Buffer>(*std::move(pages));
  std::byte* const data = owner->data();
  return Buffer(data, bytes, [owner](void* memory, size_t) { cudaHostUnregister(memory); });
}

}  // namespace moed::backend
