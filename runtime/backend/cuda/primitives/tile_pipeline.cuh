// A ring of shared-memory stages between threads that fill it and warpgroups that multiply what is
// in it: barriers that count fillers and readers, and the copies that report to them. Hopper.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "runtime/backend/cuda/primitives/async_copy.cuh"

namespace moed::backend {

#if __CUDA_ARCH__ >= 900

// `arrivals` end a phase of the barrier. One thread calls it, and then FenceBarriers.
__device__ __forceinline__ void InitBarrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void FenceBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives once this thread's cp.async so far have landed.
__device__ __forceinline__ void ArriveAfterCopies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

// What cp.async wrote, seen through a barrier, is there for warpgroup products.
__device__ __forceinline__ void FenceForProducts() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// 16 bytes into shared memory, the first `bytes` of them from `source`, the others zeros.
__device__ __forceinline__ void CopyAsync(uint32_t target, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(bytes)
               : "memory");
}

// A box of a tensor of four dimensions, at (i0, i1, i2, i3); what is outside the tensor is zeros.
__device__ __forceinline__ void CopyTensorBox(uint32_t target, const CUtensorMap& tensor,
                                              uint32_t barrier, int i0, int i1, int i2, int i3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6}], [%2];" ::"r"(target),
      "l"(&tensor), "r"(barrier), "r"(i0), "r"(i1), "r"(i2), "r"(i3)
      : "memory");
}

#endif

}  // namespace moed::backend
