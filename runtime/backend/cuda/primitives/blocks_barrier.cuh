// Blocks of one launch that wait until all of them have read what some will write. All must run at
// once. A barrier is a word of device memory, zero before its first launch: when all have arrived,
// its highest bit turns over, so that nothing has to be reset.
#pragma once

#include <cstdint>

namespace moed::backend {

class BlocksBarrier {
 public:
  static constexpr uint32_t kTurn = 0x80000000u;

  // Made by thread 0 before it arrives; the others never look.
  __device__ explicit BlocksBarrier(uint32_t* word)
      : word_(word), before_(threadIdx.x == 0 ? LoadRelaxed() : 0) {}

  // Behind a barrier of the block's own. `first`: true in one block of `arrivals`.
  __device__ void Arrive(int arrivals, bool first) const {
    if (threadIdx.x == 0) atomicAdd(word_, first ? kTurn - (arrivals - 1) : 1);
  }
  // All threads of the block call it.
  __device__ void Wait() const {
    if (threadIdx.x == 0) {
      while (((Load() ^ before_) & kTurn) == 0) {
      }
    }
    __syncthreads();
  }

 private:
  __device__ uint32_t LoadRelaxed() const {
    uint32_t value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word_));
    return value;
  }
  __device__ uint32_t Load() const {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word_) : "memory");
    return value;
  }

  uint32_t* word_;
  uint32_t before_;
};

}  // namespace moed::backend
