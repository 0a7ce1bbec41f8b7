// Copies from host to device memory from any number of threads, each on a stream of its own, so
// that they run beside the kernels of the engine's stream. Owned by the CUDA backend.
#pragma once

#include <cstddef>
#include <mutex>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/cuda/cuda_status.h"

namespace moed::backend {

class UploadStreams {
 public:
  // Returns when the copy is complete.
  absl::Status Copy(std::span<const std::byte> source, std::byte* destination);

 private:
  absl::StatusOr<CudaStream> Take();
  void GiveBack(CudaStream stream);

  std::mutex mutex_;
  std::vector<CudaStream> idle_;  // guarded by mutex_
};

}  // namespace moed::backend
