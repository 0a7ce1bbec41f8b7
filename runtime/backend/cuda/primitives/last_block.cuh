// Blocks that leave what they found to the one of them that ends last.
#pragma once

namespace moed::backend {

// True in the block that ends last of `blocks`, which sees what the others wrote before. All
// threads call it; `arrived`, in device memory, is zero before and afterwards.
__device__ inline bool LastBlock(int* arrived, int blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(arrived, 1) == blocks - 1;
    if (last) *arrived = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

}  // namespace moed::backend
