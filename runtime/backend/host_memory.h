// Page-aligned host memory straight from the kernel: zeroed, taken only when touched, backed by
// huge pages where it is large. Any thread.
#pragma once

#include <cstddef>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/backend/buffer.h"

namespace moed::backend {

// RESOURCE_EXHAUSTED, naming `what` and both figures, if `bytes` are more than this process may
// still take or the kernel refuses them. Zero bytes give an empty buffer.
absl::StatusOr<Buffer> AllocateHostMemory(size_t bytes, std::string_view what);

}  // namespace moed::backend
