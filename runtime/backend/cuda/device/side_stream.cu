#include <utility>

#include "runtime/backend/cuda/device/side_stream.h"

namespace moed::backend {

absl::Status SideStream::Create() {
  absl::Status status =
      CudaStatus(cudaStreamCreateWithFlags(stream_.receive(), cudaStreamNonBlocking),
                 "creating a CUDA stream beside the ops");
  for (CudaEvent* event : {&forked_, &marked_, &joined_}) {
    status.Update(CudaStatus(cudaEventCreateWithFlags(event->receive(), cudaEventDisableTiming),
                             "creating a CUDA event"));
  }
  return status;
}

absl::Status SideStream::Fork(cudaStream_t ops) {
  apart_ = true;
  absl::Status status =
      CudaStatus(cudaEventRecord(forked_.get(), ops), "marking the ops issued so far");
  status.Update(CudaStatus(cudaStreamWaitEvent(stream_.get(), forked_.get()),
                           "waiting for ops on another stream"));
  return status;
}

absl::Status SideStream::Mark() {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  absl::Status status = CudaStatus(cudaStreamIsCapturing(stream_.get(), &capture),
                                   "asking whether a step is recorded");
  // Recorded as an op of its own, or the host could not wait for it.
  const unsigned flags = capture == cudaStreamCaptureStatusActive ? cudaEventRecordExternal : 0;
  status.Update(CudaStatus(cudaEventRecordWithFlags(marked_.get(), stream_.get(), flags),
                           "marking what a step leaves"));
  return status;
}

absl::Status SideStream::Join(cudaStream_t ops) {
  if (!std::exchange(apart_, false)) return absl::OkStatus();
  absl::Status status =
      CudaStatus(cudaEventRecord(joined_.get(), stream_.get()), "marking what runs beside the ops");
  status.Update(
      CudaStatus(cudaStreamWaitEvent(ops, joined_.get()), "waiting for what runs beside the ops"));
  return status;
}

absl::Status SideStream::Wait() {
  return CudaStatus(cudaEventSynchronize(marked_.get()), "waiting for what a step leaves");
}

}  // namespace moed::backend
