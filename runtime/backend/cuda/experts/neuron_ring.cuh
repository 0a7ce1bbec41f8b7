// A warp's ring of shared-memory slots that whole neurons are copied into ahead of use. On Hopper
// and later one bulk copy fetches a neuron; before, the lanes copy it with cp.async.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/backend/cuda/primitives/async_copy.cuh"

namespace moed::backend {

template <int kSlots, uint32_t kSlotBytes>
class NeuronRing {
 public:
  // `memory`: kSlots * kSlotBytes of shared memory, 128-byte aligned; `barriers`: kSlots of them.
  // All lanes call it.
  __device__ NeuronRing(std::byte* memory, uint64_t* barriers, int lane)
      : memory_(memory), barriers_(barriers), lane_(lane) {
#if __CUDA_ARCH__ >= 900
    if (lane_ == 0) InitCopyBarriers(barriers_, kSlots);
    __syncwarp();
#endif
  }

  // Starts the copy number `sequence`; nothing if `source` is null. All lanes call it, in order of
  // sequence, after every lane has read copy `sequence - kSlots`.
  __device__ void Fetch(int sequence, const std::byte* source) {
    std::byte* slot = Slot(sequence);
#if __CUDA_ARCH__ >= 900
    if (lane_ == 0 && source != nullptr) {
      const uint32_t barrier = SharedAddress(&barriers_[sequence % kSlots]);
      ExpectBytes(barrier, kSlotBytes);
      CopyBulkOnce(SharedAddress(slot), source, kSlotBytes, barrier);
    }
#else
    if (source != nullptr) {
      for (uint32_t offset = lane_ * 16; offset < kSlotBytes; offset += 32 * 16) {
        CopyAsync(SharedAddress(slot + offset), source + offset);
      }
    }
    CommitCopies();
#endif
  }

  // Waits for copy `sequence`, the oldest not yet waited for.
  __device__ const std::byte* Wait(int sequence) {
#if __CUDA_ARCH__ >= 900
    WaitForBytes(SharedAddress(&barriers_[sequence % kSlots]), sequence / kSlots & 1);
#else
    WaitForCopies<kSlots - 1>();
    __syncwarp();
#endif
    return Slot(sequence);
  }

 private:
  __device__ std::byte* Slot(int sequence) const {
    return memory_ + size_t(sequence % kSlots) * kSlotBytes;
  }

  std::byte* memory_;
  uint64_t* barriers_;
  int lane_;
};

}  // namespace moed::backend
