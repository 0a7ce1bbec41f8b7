// Thread block clusters: blocks that run at once, wait for one another and read one another's
// shared memory. Devices before compute capability 9.0 have none; kernels that need them compile
// there and are not launched.
#pragma once

#include <cooperative_groups.h>

namespace moed::backend {

__device__ inline int ClusterRank() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return static_cast<int>(cooperative_groups::this_cluster().block_rank());
#else
  return 0;
#endif
}

// All threads of all blocks; what they wrote before is visible after.
__device__ inline void ClusterSync() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#endif
}

// The same place in the shared memory of block `rank`.
template <typename T>
__device__ T* InBlock(T* shared, [[maybe_unused]] int rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().map_shared_rank(shared, rank);
#else
  return shared;
#endif
}

}  // namespace moed::backend
