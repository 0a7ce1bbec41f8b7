#include "runtime/backend/cpu/memory_limit.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string_view>

#include "runtime/backend/cpu/cgroup.h"

namespace moed::backend {
namespace {

// A line of /proc/meminfo, which is in KiB; the largest number if there is none.
int64_t MeminfoBytes(const std::string& root, std::string_view wanted) {
  std::ifstream file(root + "/proc/meminfo");
  std::string name;
  while (file >> name) {
    int64_t kib = 0;
    if (name == wanted && file >> kib) return kib * 1024;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::numeric_limits<int64_t>::max();
}

}  // namespace

int64_t AvailableMemoryBytes(const std::string& root) {
  int64_t available = MeminfoBytes(root, "MemAvailable:");
  if (const auto memory = Cgroup(root).MemoryLimit()) {
    available = std::min(available, memory->limit_bytes - memory->used_bytes);
  }
  return std::max<int64_t>(available, 0);
}

int64_t TotalMemoryBytes(const std::string& root) {
  int64_t total = MeminfoBytes(root, "MemTotal:");
  if (const auto memory = Cgroup(root).MemoryLimit()) total = std::min(total, memory->limit_bytes);
  return total;
}

}  // namespace moed::backend
