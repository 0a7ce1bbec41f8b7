// What the kernel's control groups (v2, else v1) allow this process: containers are limited there,
// not in /proc/meminfo or the number of CPUs. Reads small files; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace moed::backend {

// Reads the control groups of this process. `root` stands in for "/" in tests.
class Cgroup {
 public:
  explicit Cgroup(std::string root = "");

  // CPUs' worth of time per period, e.g. 1.5; nothing if unlimited.
  std::optional<double> CpuQuota() const;

  // Tightest limit on memory over the group and its parents, and how much of it is taken by memory
  // that cannot be dropped (all but the page cache and, in v2, caches of the kernel's own); nothing
  // if unlimited.
  struct Memory {
    int64_t limit_bytes = 0;
    int64_t used_bytes = 0;
  };
  std::optional<Memory> MemoryLimit() const;

 private:
  std::string root_;
  std::string unified_path_;  // of this process in the v2 tree, "/" at its top
  std::string cpu_path_;      // v1
  std::string memory_path_;   // v1
};

}  // namespace moed::backend
