#include "runtime/backend/host_memory.h"

#include <sys/mman.h>
#include <unistd.h>

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

void* MapPages(size_t bytes) {
  return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

// MAP_FAILED if the kernel refuses. Large pieces start at a huge page, so that all of them can be.
void* Map(size_t bytes) {
  if (bytes < kHugePageBytes) return MapPages(bytes);
  const size_t page_bytes = sysconf(_SC_PAGESIZE);
  const size_t whole_pages = (bytes + page_bytes - 1) / page_bytes * page_bytes;
  void* mapped = MapPages(whole_pages + kHugePageBytes);
  if (mapped == MAP_FAILED) return mapped;
  auto* begin = static_cast<std::byte*>(mapped);
  const size_t before = -reinterpret_cast<uintptr_t>(mapped) % kHugePageBytes;
  if (before > 0) munmap(begin, before);
  munmap(begin + before + whole_pages, kHugePageBytes - before);
  // Only advice: where huge pages are switched off, small ones do.
  madvise(begin + before, whole_pages, MADV_HUGEPAGE);
  return begin + before;
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
  void* data = Map(bytes);
  if (data == MAP_FAILED) {
    return Exhausted(bytes, what, absl::StrCat("the kernel refuses it: ", std::strerror(errno)));
  }
  return Buffer(data, bytes, [](void* mapped, size_t length) { munmap(mapped, length); });
}

}  // namespace moed::backend
