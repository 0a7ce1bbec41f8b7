#include <utility>

#include "runtime/backend/cuda/device/upload_streams.h"

namespace moed::backend {

absl::StatusOr<uint64_t> UploadStreams::Mark(cudaStream_t stream) {
  CudaEvent& event = events_[(marks_ + 1) % kEvents];
  absl::Status status;
  if (event.get() == nullptr) {
    status = CudaStatus(cudaEventCreateWithFlags(event.receive(), cudaEventDisableTiming),
                        "creating a CUDA event for uploads");
  }
  if (status.ok()) status = CudaStatus(cudaEventRecord(event.get(), stream), "marking what runs");
  if (!status.ok()) return status;
  return ++marks_;
}

absl::Status UploadStreams::Copy(std::span<const std::byte> source, std::byte* destination,
                                 uint64_t after) {
  absl::StatusOr<CudaStream> stream = Take();
  if (!stream.ok()) return stream.status();
  absl::Status status;
  if (after != 0) {
    status = CudaStatus(cudaStreamWaitEvent(stream->get(), events_[after % kEvents].get()),
                        "waiting for a slot in VRAM");
  }
  status.Update(CudaStatus(cudaMemcpyAsync(destination, source.data(), source.size(),
                                           cudaMemcpyHostToDevice, stream->get()),
                           "copying an expert into VRAM"));
  status.Update(CudaStatus(cudaStreamSynchronize(stream->get()), "copying an expert into VRAM"));
  GiveBack(*std::move(stream));
  return status;
}

absl::StatusOr<CudaStream> UploadStreams::Take() {
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      CudaStream stream = std::move(idle_.back());
      idle_.pop_back();
      return stream;
    }
  }
  CudaStream stream;
  absl::Status status =
      CudaStatus(cudaStreamCreateWithFlags(stream.receive(), cudaStreamNonBlocking),
                 "creating a CUDA stream for uploads");
  if (!status.ok()) return status;
  return stream;
}

void UploadStreams::GiveBack(CudaStream stream) {
  const std::lock_guard lock(mutex_);
  idle_.push_back(std::move(stream));
}

}  // namespace moed::backend
