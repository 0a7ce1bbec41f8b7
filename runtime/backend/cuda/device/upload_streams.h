// Copies from host to device memory from any number of threads, each on a stream of its own, so
// that they run beside the kernels of the engine's stream, but for those that a copy must wait for.
// Owned by the CUDA backend; only the engine thread marks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/cuda/device/cuda_status.h"

namespace moed::backend {

class UploadStreams {
 public:
  // Marks what was issued to `stream` so far; never 0.
  absl::StatusOr<uint64_t> Mark(cudaStream_t stream);

  // Copies once what `after` marks is finished, if it is not 0. Returns when the copy is complete.
  absl::Status Copy(std::span<const std::byte> source, std::byte* destination, uint64_t after);

 private:
  // An event that is marked again waits for more than it must, which does no harm.
  static constexpr int kEvents = 64;

  absl::StatusOr<CudaStream> Take();
  void GiveBack(CudaStream stream);

  uint64_t marks_ = 0;
  CudaEvent events_[kEvents];
  std::mutex mutex_;
  std::vector<CudaStream> idle_;  // guarded by mutex_
};

}  // namespace moed::backend
