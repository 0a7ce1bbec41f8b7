// Host memory that the GPU reads over the link: huge pages, registered with CUDA. Any thread.
#pragma once

#include <cstddef>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/backend/buffer.h"

namespace moed::backend {

// RESOURCE_EXHAUSTED, naming bytes and `what`, if the memory cannot be had or pinned.
absl::StatusOr<Buffer> AllocatePinnedMemory(size_t bytes, std::string_view what);

}  // namespace moed::backend
