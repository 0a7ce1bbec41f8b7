#include "runtime/backend/cpu/memory_limit.h"

#include <algorithm>
#include <fstream>
#include <limits>

#include "runtime/backend/cpu/cgroup.h"

namespace moed::backend {
namespace {

// The "MemAvailable:" line of /proc/meminfo, which is in KiB.
int64_t KernelAvailableBytes(const std::string& root) {
  std::ifstream file(root + "/proc/meminfo");
  std::string name;
  while (file >> name) {
    int64_t kib = 0;
    if (name == "MemAvailable:" && file >> kib) return kib * 1024;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::numeric_limits<int64_t>::max();
}

}  // namespace

int64_t AvailableMemoryBytes(const std::string& root) {
  int64_t available = KernelAvailableBytes(root);
  if (const auto memory = Cgroup(root).MemoryLimit()) {
    available = std::min(available, memory->limit_bytes - memory->used_bytes);
  }
  return std::max<int64_t>(available, 0);
}

}  // namespace moed::backend
