#include <algorithm>
#include <bit>

#include "runtime/backend/cuda/device/cuda_status.h"
#include "runtime/backend/cuda/device/list_upload.h"

namespace moed::backend {
namespace {

constexpr int kThreads = 256;
constexpr size_t kLeastBytes = size_t{64} << 10;

__global__ void CopyList(const uint4* source, uint4* target, size_t count) {
  const size_t i = size_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) target[i] = source[i];
}

}  // namespace

ListUpload::~ListUpload() {
  for (const Slot& slot : slots_) {
    if (slot.copied == nullptr) continue;
    cudaEventSynchronize(slot.copied);
    cudaEventDestroy(slot.copied);
  }
}

absl::StatusOr<std::byte*> ListUpload::Stage(size_t bytes) {
  bytes = (bytes + sizeof(uint4) - 1) / sizeof(uint4) * sizeof(uint4);
  current_ = 1 - current_;
  Slot& slot = slots_[current_];
  const cudaError_t error = slot.copied == nullptr
                                ? cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming)
                                : cudaEventSynchronize(slot.copied);
  if (absl::Status status = CudaStatus(error, "waiting for an older list"); !status.ok()) {
    return status;
  }
  const size_t capacity = std::max(std::bit_ceil(bytes), kLeastBytes);
  const absl::StatusOr<std::byte*> target = device_.Reserve(capacity);
  if (!target.ok()) return target.status();
  const absl::StatusOr<std::byte*> staged = slot.memory.Reserve(capacity);
  if (!staged.ok()) return staged.status();
  bytes_ = bytes;
  target_ = *target;
  staged_ = *staged;
  return staged_;
}

absl::Status ListUpload::Copy(cudaStream_t stream) {
  // A copy engine would take it after the experts that wait for one.
  const size_t count = bytes_ / sizeof(uint4);
  CopyList<<<static_cast<int>((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      reinterpret_cast<const uint4*>(staged_), reinterpret_cast<uint4*>(target_), count);
  absl::Status status = CudaStatus(cudaGetLastError(), "copying a list to the device");
  status.Update(CudaStatus(cudaEventRecord(slots_[current_].copied, stream),
                           "recording that a list is copied"));
  return status;
}

}  // namespace moed::backend
