#include "runtime/backend/cpu/cgroup.h"

#include <fstream>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace moed::backend {
namespace {

constexpr char kMount[] = "/sys/fs/cgroup";

std::string ReadLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::optional<int64_t> ReadNumber(const std::string& path) {
  int64_t value = 0;
  if (!absl::SimpleAtoi(ReadLine(path), &value)) return std::nullopt;
  return value;
}

// The number after `key` in a file of "key number" lines (memory.stat); 0 if there is none.
int64_t ReadField(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  std::string name;
  int64_t value = 0;
  while (file >> name >> value) {
    if (name == key) return value;
  }
  return 0;
}

// The group's folder and its parents', innermost first. In a container the path of /proc is often
// one of the host, and only the mount's top exists: missing folders are simply not readable.
std::vector<std::string> GroupAndParents(const std::string& mount, std::string path) {
  std::vector<std::string> folders;
  while (path.size() > 1) {
    folders.push_back(mount + path);
    path.resize(path.rfind('/'));
  }
  folders.push_back(mount);
  return folders;
}

void KeepTighter(std::optional<Cgroup::Memory>* tightest, int64_t limit_bytes, int64_t used_bytes) {
  const int64_t free_bytes = limit_bytes - used_bytes;
  if (!tightest->has_value() || free_bytes < (*tightest)->limit_bytes - (*tightest)->used_bytes) {
    *tightest = Cgroup::Memory{limit_bytes, used_bytes};
  }
}

}  // namespace

Cgroup::Cgroup(std::string root) : root_(std::move(root)) {
  std::ifstream file(root_ + "/proc/self/cgroup");
  std::string line;
  while (std::getline(file, line)) {  // "hierarchy:controllers:path"
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    if (fields[0] == "0") unified_path_ = fields[2];
    const std::vector<std::string> controllers = absl::StrSplit(fields[1], ',');
    for (const std::string& controller : controllers) {
      if (controller == "cpu") cpu_path_ = fields[2];
      if (controller == "memory") memory_path_ = fields[2];
    }
  }
}

std::optional<double> Cgroup::CpuQuota() const {
  std::optional<double> quota;
  auto keep_tighter = [&quota](double cpus) {
    if (!quota.has_value() || cpus < *quota) quota = cpus;
  };
  for (const std::string& folder : GroupAndParents(root_ + kMount, unified_path_)) {
    const std::vector<std::string> fields = absl::StrSplit(ReadLine(folder + "/cpu.max"), ' ');
    int64_t quota_us = 0;
    int64_t period_us = 0;
    if (fields.size() == 2 && absl::SimpleAtoi(fields[0], &quota_us) &&
        absl::SimpleAtoi(fields[1], &period_us) && period_us > 0) {
      keep_tighter(static_cast<double>(quota_us) / static_cast<double>(period_us));
    }
  }
  for (const std::string& folder : GroupAndParents(root_ + kMount + "/cpu", cpu_path_)) {
    const auto quota_us = ReadNumber(folder + "/cpu.cfs_quota_us");
    const auto period_us = ReadNumber(folder + "/cpu.cfs_period_us");
    if (quota_us.value_or(-1) > 0 && period_us.value_or(0) > 0) {
      keep_tighter(static_cast<double>(*quota_us) / static_cast<double>(*period_us));
    }
  }
  return quota;
}

std::optional<Cgroup::Memory> Cgroup::MemoryLimit() const {
  std::optional<Memory> tightest;
  for (const std::string& folder : GroupAndParents(root_ + kMount, unified_path_)) {
    const auto limit = ReadNumber(folder + "/memory.max");
    const auto used = ReadNumber(folder + "/memory.current");
    if (!limit.has_value() || !used.has_value()) continue;
    const std::string stat = folder + "/memory.stat";
    // The page cache's own tables and those of file names can go as well.
    const int64_t droppable =
        ReadField(stat, "file") - ReadField(stat, "shmem") + ReadField(stat, "slab_reclaimable");
    KeepTighter(&tightest, *limit, *used - droppable);
  }
  for (const std::string& folder : GroupAndParents(root_ + kMount + "/memory", memory_path_)) {
    const auto limit = ReadNumber(folder + "/memory.limit_in_bytes");
    const auto used = ReadNumber(folder + "/memory.usage_in_bytes");
    if (!limit.has_value() || !used.has_value()) continue;
    const std::string stat = folder + "/memory.stat";
    KeepTighter(&tightest, *limit,
                *used - ReadField(stat, "total_cache") + ReadField(stat, "total_shmem"));
  }
  return tightest;
}

}  // namespace moed::backend
