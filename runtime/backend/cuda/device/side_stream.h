// A stream beside the ops' own: what is issued to it begins when the ops issued before have ended
// and runs beside those that follow. So results that are there early leave the device while it goes
// on, and the host can wait for them alone. May be captured with the ops. Owned by the CUDA
// backend; engine thread.
#pragma once

#include <cuda_runtime.h>

#include "absl/status/status.h"
#include "runtime/backend/cuda/device/cuda_status.h"

namespace moed::backend {

class SideStream {
 public:
  absl::Status Create();

  // What is issued to stream() from here on comes after all that was issued to `ops`.
  absl::Status Fork(cudaStream_t ops);
  cudaStream_t stream() const { return stream_.get(); }
  // Marks the end of what was issued to it, for Wait.
  absl::Status Mark();
  // What is issued to `ops` from here on comes after all that was issued here; before a capture
  // ends, and before anyone relies on `ops` alone.
  absl::Status Join(cudaStream_t ops);
  // The host waits for the last mark, of a recording for that of its last launch.
  absl::Status Wait();

 private:
  CudaStream stream_;
  CudaEvent forked_;
  CudaEvent marked_;
  CudaEvent joined_;
  bool apart_ = false;  // since the last Fork
};

}  // namespace moed::backend
