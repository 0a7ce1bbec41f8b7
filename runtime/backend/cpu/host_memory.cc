#include "runtime/backend/cpu/host_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/backend/cpu/memory_limit.h"

namespace moed::backend {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;
constexpr double kMiB = 1 << 20;

// Small buffers cannot exhaust the memory, and the check costs a few file reads.
constexpr size_t kCheckedBytes = size_t{64} << 20;

absl::Status Exhausted(size_t bytes, std::string_view what, std::string_view reason) {
  return absl::ResourceExhaustedError(
      absl::StrFormat("%s needs %.1f MiB of host memory, but %s; lower --expert-budget or "
                      "--kv-cache-memory, or raise the container's memory limit",
                      what, static_cast<double>(bytes) / kMiB, reason));
}

}  // namespace

absl::StatusOr<Buffer> AllocateHostMemory(size_t bytes, std::string_view what) {
  if (bytes == 0) return Buffer();
  if (bytes >= kCheckedBytes) {
    const int64_t available = AvailableMemoryBytes();
    if (bytes > static_cast<uint64_t>(available)) {
      return Exhausted(
          bytes, what,
          absl::StrFormat("%.1f MiB are available", static_cast<double>(available) / kMiB));
    }
  }
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return Exhausted(bytes, what, absl::StrCat("the kernel refuses it: ", std::strerror(errno)));
  }
  // Only advice: where huge pages are switched off, small ones do.
  if (bytes >= kHugePageBytes) madvise(data, bytes, MADV_HUGEPAGE);
  return Buffer(data, bytes, [](void* mapped, size_t length) { munmap(mapped, length); });
}

}  // namespace moed::backend
