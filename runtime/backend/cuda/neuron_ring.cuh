// A warp's ring of shared-memory slots that whole neurons are copied into ahead of use. On Hopper
// and later one bulk copy fetches a neuron; before, the lanes copy it with cp.async.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moed::backend {

template <int kSlots, uint32_t kSlotBytes>
class NeuronRing {
 public:
  // `memory`: kSlots * kSlotBytes of shared memory, 128-byte aligned; `barriers`: kSlots of them.
  // All lanes call it.
  __device__ NeuronRing(std::byte* memory, uint64_t* barriers, int lane)
      : memory_(memory), barriers_(barriers), lane_(lane) {
#if __CUDA_ARCH__ >= 900
    if (lane_ == 0) {
      for (int slot = 0; slot < kSlots; ++slot) {
        asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(Shared(&barriers_[slot])));
      }
      asm volatile("fence.mbarrier_init.release.cluster;");
    }
    __syncwarp();
#endif
  }

  // Starts the copy number `sequence`; nothing if `source` is null. All lanes call it, in order of
  // sequence, after every lane has read copy `sequence - kSlots`.
  __device__ void Fetch(int sequence, const std::byte* source) {
    std::byte* slot = Slot(sequence);
#if __CUDA_ARCH__ >= 900
    if (lane_ == 0 && source != nullptr) {
      const uint32_t barrier = Shared(&barriers_[sequence % kSlots]);
      asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier),
                   "r"(kSlotBytes)
                   : "memory");
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
          "[%3];" ::"r"(Shared(slot)),
          "l"(source), "r"(kSlotBytes), "r"(barrier)
          : "memory");
    }
#else
    if (source != nullptr) {
      for (uint32_t offset = lane_ * 16; offset < kSlotBytes; offset += 32 * 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(Shared(slot + offset)),
                     "l"(source + offset)
                     : "memory");
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }

  // Waits for copy `sequence`, the oldest not yet waited for.
  __device__ const std::byte* Wait(int sequence) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred done;\nAGAIN: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra AGAIN;\n}" ::"r"(Shared(&barriers_[sequence % kSlots])),
        "r"(sequence / kSlots & 1)
        : "memory");
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(kSlots - 1) : "memory");
    __syncwarp();
#endif
    return Slot(sequence);
  }

 private:
  __device__ static uint32_t Shared(const void* address) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(address));
  }
  __device__ std::byte* Slot(int sequence) const {
    return memory_ + size_t(sequence % kSlots) * kSlotBytes;
  }

  std::byte* memory_;
  uint64_t* barriers_;
  int lane_;
};

}  // namespace moed::backend
