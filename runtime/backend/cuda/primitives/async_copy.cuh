// The PTX of copies into shared memory that run beside the threads: 16 bytes at a time (cp.async)
// and, on Hopper and later, pieces of any size that report to a barrier (cp.async.bulk). What the
// rings and the tiles of other kernels are made of.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moed::backend {

__device__ __forceinline__ uint32_t SharedAddress(const void* address) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(address));
}

// 16 bytes; the copies since the last commit form a group.
__device__ __forceinline__ void CopyAsync(uint32_t target, const void* source) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source) : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kNewer groups, the latest, are under way.
template <int kNewer>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewer) : "memory");
}

#if __CUDA_ARCH__ >= 900
// `count` barriers, each for the announcements of so many threads; one thread calls it, before the
// others use them behind a barrier of their own.
__device__ __forceinline__ void InitCopyBarriers(uint64_t* barriers, int count, int threads = 1) {
  for (int i = 0; i < count; ++i) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(SharedAddress(&barriers[i])),
                 "r"(threads));
  }
  asm volatile("fence.mbarrier_init.release.cluster;");
}

// Announces the bytes of the copies that will report to the barrier in this phase.
__device__ __forceinline__ void ExpectBytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// `bytes`, `target` and `source` are multiples of 16.
__device__ __forceinline__ void CopyBulk(uint32_t target, const std::byte* source, uint32_t bytes,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(target),
      "l"(source), "r"(bytes), "r"(barrier)
      : "memory");
}

// The same of what is read once, and shall displace nothing else in L2.
__device__ __forceinline__ void CopyBulkOnce(uint32_t target, const std::byte* source,
                                             uint32_t bytes, uint32_t barrier) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], %2, [%3], %4;" ::"r"(target),
      "l"(source), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

// Waits until phase `parity` of the barrier is over: all that was announced has come.
__device__ __forceinline__ void WaitForBytes(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra AGAIN;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
#endif

}  // namespace moed::backend
