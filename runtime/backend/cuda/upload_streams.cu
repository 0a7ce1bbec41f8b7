#include <utility>

#include "runtime/backend/cuda/upload_streams.h"

namespace moed::backend {

absl::Status UploadStreams::Copy(std::span<const std::byte> source, std::byte* destination) {
  absl::StatusOr<CudaStream> stream = Take();
  if (!stream.ok()) return stream.status();
  absl::Status status = CudaStatus(cudaMemcpyAsync(destination, source.data(), source.size(),
                                                   cudaMemcpyHostToDevice, stream->get()),
                                   "copying an expert into VRAM");
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
