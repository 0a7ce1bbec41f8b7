// Lists that the host makes for kernels, on their way to the device: written into pinned memory and
// copied in the stream's order, so that the host need not wait for the kernels that read the last
// one. Owned by what launches those kernels; engine thread.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/cuda/device/workspace.h"

namespace moed::backend {

class ListUpload {
 public:
  ListUpload() = default;
  ~ListUpload();
  ListUpload(const ListUpload&) = delete;
  ListUpload& operator=(const ListUpload&) = delete;

  // Where the host may write a list of `bytes`, and where Copy will put it: kernels issued so far
  // may still read another there. Waits for the copy before the last. RESOURCE_EXHAUSTED: memory,
  // of which there is soon enough for lists that grow from step to step.
  absl::StatusOr<std::byte*> Stage(size_t bytes);
  std::byte* target() const { return target_; }
  // Issues the copy of what was staged, always on the same stream.
  absl::Status Copy(cudaStream_t stream);
  // How often the target moved.
  uint64_t moves() const { return device_.moves(); }

 private:
  struct Slot {
    Workspace memory{WorkspaceMemory::kPinned};
    cudaEvent_t copied = nullptr;
  };

  Slot slots_[2];
  int current_ = 0;
  size_t bytes_ = 0;
  std::byte* staged_ = nullptr;
  std::byte* target_ = nullptr;
  Workspace device_{WorkspaceMemory::kDevice};
};

}  // namespace moed::backend
