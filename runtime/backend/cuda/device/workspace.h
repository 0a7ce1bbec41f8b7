// Device memory that ops use while they run, and pinned memory they stage host data in. Grows to
// the largest request and stays; asking again for a name may move it, so pointers live for one op.
// Owned by the CUDA backend; engine thread.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace moed::backend {

enum class WorkspaceMemory { kDevice, kPinned };

class Workspace {
 public:
  explicit Workspace(WorkspaceMemory memory) : memory_(memory) {}
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

  // At least `bytes`, 256-byte aligned. RESOURCE_EXHAUSTED if they cannot be had.
  absl::StatusOr<std::byte*> Reserve(size_t bytes);
  // How often the memory moved.
  uint64_t moves() const { return moves_; }

 private:
  WorkspaceMemory memory_;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  uint64_t moves_ = 0;
};

}  // namespace moed::backend
