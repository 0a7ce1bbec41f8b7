// How much more memory this process may take: what budgets and plans start from. Any thread.
#pragma once

#include <cstdint>
#include <string>

namespace moed::backend {

// The lesser of what the cgroup still allows and the kernel's MemAvailable, in bytes. Page cache
// counts as available in both. `root` stands in for "/" in tests.
int64_t AvailableMemoryBytes(const std::string& root = "");

// The lesser of the limit of the cgroup that has least left and the machine's memory, in bytes,
// whoever holds it now.
int64_t TotalMemoryBytes(const std::string& root = "");

}  // namespace moed::backend
