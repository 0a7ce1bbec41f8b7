#include "runtime/backend/cpu/cgroup.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/backend/cpu/cpu_count.h"
#include "runtime/backend/cpu/memory_limit.h"

namespace moed::backend {
namespace {

constexpr int64_t kMiB = 1 << 20;

// A root folder with the files that a test writes into it.
class CgroupTest : public testing::Test {
 protected:
  CgroupTest() {
    std::string pattern = testing::TempDir() + "cgroupXXXXXX";
    root_ = mkdtemp(pattern.data());
  }
  ~CgroupTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) const {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  std::string root_;
};

TEST_F(CgroupTest, FindsNoLimitsWithoutFiles) {
  EXPECT_FALSE(Cgroup(root_).CpuQuota().has_value());
  EXPECT_FALSE(Cgroup(root_).MemoryLimit().has_value());
}

TEST_F(CgroupTest, ReadsVersionTwo) {
  Write("/proc/self/cgroup", "0::/pod/app\n");
  Write("/sys/fs/cgroup/pod/app/cpu.max", "150000 100000\n");
  Write("/sys/fs/cgroup/pod/app/memory.max", "1000\n");
  Write("/sys/fs/cgroup/pod/app/memory.current", "700\n");
  Write("/sys/fs/cgroup/pod/app/memory.stat",
        "anon 100\nfile 500\nshmem 50\nslab_reclaimable 20\nslab_unreclaimable 7\n");
  EXPECT_EQ(Cgroup(root_).CpuQuota(), 1.5);
  const auto memory = Cgroup(root_).MemoryLimit();
  ASSERT_TRUE(memory.has_value());
  EXPECT_EQ(memory->limit_bytes, 1000);
  EXPECT_EQ(memory->used_bytes, 230);  // the page cache can go, shared memory cannot
}

TEST_F(CgroupTest, TakesTheTightestOfGroupAndParents) {
  Write("/proc/self/cgroup", "0::/pod/app\n");
  Write("/sys/fs/cgroup/pod/app/cpu.max", "max 100000\n");
  Write("/sys/fs/cgroup/pod/cpu.max", "300000 100000\n");
  Write("/sys/fs/cgroup/pod/app/memory.max", "max\n");
  Write("/sys/fs/cgroup/pod/app/memory.current", "10\n");
  Write("/sys/fs/cgroup/pod/memory.max", "4000\n");
  Write("/sys/fs/cgroup/pod/memory.current", "1000\n");
  EXPECT_EQ(Cgroup(root_).CpuQuota(), 3.0);
  EXPECT_EQ(Cgroup(root_).MemoryLimit()->limit_bytes, 4000);
}

// In a container the path names a folder of the host, and the limits stand at the top.
TEST_F(CgroupTest, FallsBackToTheTopOfTheMount) {
  Write("/proc/self/cgroup", "0::/kubepods/pod1/container\n");
  Write("/sys/fs/cgroup/cpu.max", "200000 100000\n");
  EXPECT_EQ(Cgroup(root_).CpuQuota(), 2.0);
}

TEST_F(CgroupTest, ReadsVersionOne) {
  Write("/proc/self/cgroup", "4:memory:/job\n2:cpu,cpuacct:/job\n0::/\n");
  Write("/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "50000\n");
  Write("/sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  Write("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "1000\n");
  Write("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "600\n");
  Write("/sys/fs/cgroup/memory/job/memory.stat", "cache 1\ntotal_cache 300\ntotal_shmem 100\n");
  EXPECT_EQ(Cgroup(root_).CpuQuota(), 0.5);
  EXPECT_EQ(Cgroup(root_).MemoryLimit()->used_bytes, 400);
}

TEST_F(CgroupTest, AvailableMemoryIsTheLesserOfKernelAndGroup) {
  Write("/proc/meminfo",
        "MemTotal: 9000 kB\nMemFree: 1 kB\nMemAvailable: 2048 kB\nBuffers: 7 kB\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 2 * kMiB);
  Write("/proc/self/cgroup", "0::/\n");
  Write("/sys/fs/cgroup/memory.max", std::to_string(3 * kMiB));
  Write("/sys/fs/cgroup/memory.current", std::to_string(2 * kMiB));
  EXPECT_EQ(AvailableMemoryBytes(root_), kMiB);
  Write("/sys/fs/cgroup/memory.current", std::to_string(4 * kMiB));
  EXPECT_EQ(AvailableMemoryBytes(root_), 0);
}

TEST_F(CgroupTest, TotalMemoryIsTheLesserOfMachineAndGroup) {
  Write("/proc/meminfo", "MemTotal: 4096 kB\nMemAvailable: 1024 kB\n");
  EXPECT_EQ(TotalMemoryBytes(root_), 4 * kMiB);
  Write("/proc/self/cgroup", "0::/\n");
  Write("/sys/fs/cgroup/memory.max", std::to_string(3 * kMiB));
  Write("/sys/fs/cgroup/memory.current", std::to_string(2 * kMiB));
  EXPECT_EQ(TotalMemoryBytes(root_), 3 * kMiB);
}

TEST(CpuCountTest, LeavesOneCpuFromThreeUp) {
  const int cpus = AvailableCpus();
  ASSERT_GE(cpus, 1);
  EXPECT_EQ(DefaultComputeThreads(), cpus >= 3 ? cpus - 1 : cpus);
  EXPECT_GE(DefaultColdThreads(), 1);
  EXPECT_LE(DefaultColdThreads(), std::max(1, cpus - 1));
}

}  // namespace
}  // namespace moed::backend
