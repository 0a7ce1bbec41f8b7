// A block's ring of shared-memory slots that pieces of weights are copied into ahead of use, all
// warps reading the same slot. On Hopper and later one bulk copy fetches a piece; before, all
// threads copy it with cp.async. What came may be written on to global memory the same way.
// (neuron_ring.cuh is a warp's own.)
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/backend/cuda/primitives/async_copy.cuh"

namespace moed::backend {

// A copy may be of several pieces: warps from kFirstWarp on start one each, so that none keeps the
// others waiting. kNewer: copies, of all rings of the block, surely started after the one that is
// waited for (used before Hopper).
template <int kSlots, int kPieces = 1, int kFirstWarp = 0, int kNewer = kSlots - 1>
class BlockRing {
 public:
  // `memory`: kSlots * slot_bytes of shared memory, 128-byte aligned; slot_bytes a multiple of 128;
  // `barriers`: kSlots of them. All threads call it.
  __device__ BlockRing(std::byte* memory, uint32_t slot_bytes, uint64_t* barriers)
      : memory_(memory), slot_bytes_(slot_bytes), barriers_(barriers) {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0) InitCopyBarriers(barriers_, kSlots, kPieces);
    __syncthreads();
#endif
  }

  // Starts the copy number `sequence`; nothing if `source` is null. All threads call it, in order
  // of sequence, after a barrier behind which none reads copy `sequence - kSlots` any more.
  __device__ void Fetch(int sequence, const std::byte* source) {
    Fetch(sequence, source, {.bytes = slot_bytes_});
  }
  // The same of kPieces times `bytes`, so and so far apart in memory and in the slot.
  struct Pieces {
    uint32_t bytes = 0;  // a multiple of 16, as the strides are
    size_t source_stride = 0;
    uint32_t slot_stride = 0;
  };
  __device__ void Fetch(int sequence, const std::byte* source, const Pieces& pieces) {
    std::byte* const slot = Slot(sequence);
#if __CUDA_ARCH__ >= 900
    const int piece = static_cast<int>(threadIdx.x / 32) - kFirstWarp;
    if (threadIdx.x % 32 == 0 && piece >= 0 && piece < kPieces && source != nullptr) {
      const uint32_t barrier = SharedAddress(&barriers_[sequence % kSlots]);
      ExpectBytes(barrier, pieces.bytes);
      CopyBulk(SharedAddress(slot) + piece * pieces.slot_stride,
               source + piece * pieces.source_stride, pieces.bytes, barrier);
    }
#else
    if (source != nullptr) {
      for (int i = 0; i < kPieces; ++i) {
        for (uint32_t offset = threadIdx.x * 16; offset < pieces.bytes; offset += blockDim.x * 16) {
          CopyAsync(SharedAddress(slot) + i * pieces.slot_stride + offset,
                    source + i * pieces.source_stride + offset);
        }
      }
    }
    CommitCopies();
#endif
  }

  // Waits for copy `sequence`, the oldest not yet waited for. All threads call it.
  __device__ const std::byte* Wait(int sequence) {
#if __CUDA_ARCH__ >= 900
    WaitForBytes(SharedAddress(&barriers_[sequence % kSlots]), sequence / kSlots & 1);
#else
    WaitForCopies<kNewer>();
    __syncthreads();
#endif
    return Slot(sequence);
  }

  // Writes copy `sequence` on to `target` in global memory; thread 0 waits for the copies that such
  // a write reads (FinishReads) or has written (FinishStores). All threads call them.
  __device__ void Store(int sequence, std::byte* target) {
    const std::byte* const slot = Slot(sequence);
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0) {
      asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(target),
                   "r"(SharedAddress(slot)), "r"(slot_bytes_)
                   : "memory");
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    }
#else
    for (uint32_t offset = threadIdx.x * 16; offset < slot_bytes_; offset += blockDim.x * 16) {
      *reinterpret_cast<uint4*>(target + offset) = *reinterpret_cast<const uint4*>(slot + offset);
    }
#endif
  }
  __device__ void FinishReads() {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
#endif
  }
  __device__ void FinishStores() {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
  }

 private:
  __device__ std::byte* Slot(int sequence) const {
    return memory_ + size_t(sequence % kSlots) * slot_bytes_;
  }

  std::byte* memory_;
  uint32_t slot_bytes_;
  uint64_t* barriers_;
};

}  // namespace moed::backend
