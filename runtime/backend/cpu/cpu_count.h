// How many compute threads fit this process. Any thread.
#pragma once

namespace moed::backend {

// CPUs that this process may use at once: its affinity mask, cut by its cgroup's quota (rounded
// up); at least 1.
int AvailableCpus();

// Compute threads to start if the user names no number: all CPUs, less one from three up, which is
// left to RPC and I/O threads.
int DefaultComputeThreads();

}  // namespace moed::backend
