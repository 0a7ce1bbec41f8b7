// Lists that the host makes for kernels, on their way to the device: written into pinned memory and
// copied in the stream's order, so that the host need not wait for the kernels that read the last
// one. Owned by the CUDA backend; engine thread.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/cuda/workspace.h"

namespace moed::backend {

class ListUpload {
 public:
  explicit ListUpload(cudaStream_t stream) : stream_(stream) {}
  ~ListUpload();
  ListUpload(const ListUpload&) = delete;
  ListUpload& operator=(const ListUpload&) = delete;

  // Where the host may write a list of `bytes`, and where Copy will put it: kernels issued so far
  // may still read another there. Waits for the copy before the last.
  absl::StatusOr<std::byte*> Stage(size_t bytes);
  std::byte* target() const { return target_; }
  // Issues the copy of what was staged.
  absl::Status Copy();

 private:
  struct Slot {
    Workspace memory{WorkspaceMemory::kPinned};
    cudaEvent_t copied = nullptr;
  };

  cudaStream_t stream_;
  Slot slots_[2];
  int current_ = 0;
  size_t bytes_ = 0;
  std::byte* staged_ = nullptr;
  std::byte* target_ = nullptr;
  Workspace device_{WorkspaceMemory::kDevice};
};

}  // namespace moed::backend
