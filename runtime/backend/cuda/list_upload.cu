#include "runtime/backend/cuda/cuda_status.h"
#include "runtime/backend/cuda/list_upload.h"

namespace moed::backend {

ListUpload::~ListUpload() {
  for (const Slot& slot : slots_) {
    if (slot.copied == nullptr) continue;
    cudaEventSynchronize(slot.copied);
    cudaEventDestroy(slot.copied);
  }
}

absl::StatusOr<std::byte*> ListUpload::Stage(size_t bytes) {
  current_ = 1 - current_;
  Slot& slot = slots_[current_];
  const cudaError_t error = slot.copied == nullptr
                                ? cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming)
                                : cudaEventSynchronize(slot.copied);
  if (absl::Status status = CudaStatus(error, "waiting for an older list"); !status.ok()) {
    return status;
  }
  const absl::StatusOr<std::byte*> target = device_.Reserve(bytes);
  if (!target.ok()) return target.status();
  const absl::StatusOr<std::byte*> staged = slot.memory.Reserve(bytes);
  if (!staged.ok()) return staged.status();
  bytes_ = bytes;
  target_ = *target;
  staged_ = *staged;
  return staged_;
}

absl::Status ListUpload::Copy() {
  absl::Status status =
      CudaStatus(cudaMemcpyAsync(target_, staged_, bytes_, cudaMemcpyHostToDevice, stream_),
                 "copying a list to the device");
  status.Update(CudaStatus(cudaEventRecord(slots_[current_].copied, stream_),
                           "recording that a list is copied"));
  return status;
}

}  // namespace moed::backend
