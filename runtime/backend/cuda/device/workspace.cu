#include "runtime/backend/cuda/device/cuda_status.h"
#include "runtime/backend/cuda/device/workspace.h"

namespace moed::backend {
namespace {

void Free(WorkspaceMemory memory, void* data) {
  if (memory == WorkspaceMemory::kDevice) {
    cudaFree(data);
  } else {
    cudaFreeHost(data);
  }
}

}  // namespace

Workspace::~Workspace() { Free(memory_, data_); }

absl::StatusOr<std::byte*> Workspace::Reserve(size_t bytes) {
  if (bytes <= bytes_) return data_;
  // cudaFree waits for kernels that still use the old memory; freeing pinned memory does too.
  Free(memory_, std::exchange(data_, nullptr));
  bytes_ = 0;
  void* data = nullptr;
  const cudaError_t error =
      memory_ == WorkspaceMemory::kDevice ? cudaMalloc(&data, bytes) : cudaMallocHost(&data, bytes);
  absl::Status status =
      CudaStatus(error, absl::StrCat("taking ", bytes, " bytes of CUDA workspace"));
  if (!status.ok()) return status;
  data_ = static_cast<std::byte*>(data);
  bytes_ = bytes;
  ++moves_;
  return data_;
}

}  // namespace moed::backend
