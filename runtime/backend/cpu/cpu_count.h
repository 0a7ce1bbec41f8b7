// How many compute threads fit this process. Any thread.
#pragma once

namespace moed::backend {

// CPUs that this process may use at once: its affinity mask, cut by its cgroup's quota (rounded
// up); at least 1.
int AvailableCpus();

// Compute threads to start if the user names no number: all CPUs, less one from three up, which is
// left to RPC and I/O threads.
int DefaultComputeThreads();

// Threads to start beside one that launches a device's steps, where all of them spin while a step
// lasts: all CPUs but that one's. Under a cgroup's quota one less, since the kernel stops all
// threads of a process that goes beyond it. At least 1.
int DefaultColdThreads();

}  // namespace moed::backend
