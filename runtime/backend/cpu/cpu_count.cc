#include "runtime/backend/cpu/cpu_count.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <thread>

#include "runtime/backend/cpu/cgroup.h"

namespace moed::backend {
namespace {

int CpusOfAffinityMask() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) return std::max(1, CPU_COUNT(&mask));
  // More CPUs than the mask type holds.
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

int AvailableCpus() {
  const int cpus = CpusOfAffinityMask();
  const double quota = Cgroup().CpuQuota().value_or(cpus);
  return std::clamp(static_cast<int>(std::ceil(quota)), 1, cpus);
}

int DefaultComputeThreads() {
  const int cpus = AvailableCpus();
  return cpus >= 3 ? cpus - 1 : cpus;
}

int DefaultColdThreads() {
  const bool quota = Cgroup().CpuQuota().has_value();
  return std::max(1, AvailableCpus() - (quota ? 2 : 1));
}

}  // namespace moed::backend
