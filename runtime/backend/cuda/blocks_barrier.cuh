// Blocks of one launch that wait for what others of it left in device memory. All that take part
// must run at once. A barrier is a word, zero before its first launch: each time `arrivals` blocks
// arrived, its highest bit turns over, so that nothing has to be reset.
#pragma once

#include <cstdint>

namespace moed::backend {

class BlocksBarrier {
 public:
  static constexpr uint32_t kTurn = 0x80000000u;

  // Made by thread 0 before it arrives anywhere in this launch; the others never look.
  __device__ explicit BlocksBarrier(uint32_t* word)
      : word_(word), before_(threadIdx.x == 0 ? LoadRelaxed() : 0) {}

  // All threads of the block call it; what they wrote before can be read by those that waited.
  // `first`: true in one block of `arrivals`.
  __device__ void Arrive(int arrivals, bool first) const {
    __syncthreads();
    if (threadIdx.x != 0) return;
    __threadfence();
    atomicAdd(word_, first ? kTurn - (arrivals - 1) : 1);
  }
  // The same of a block that only read, after a barrier of its own.
  __device__ void ArriveAfterReads(int arrivals, bool first) const {
    if (threadIdx.x == 0) atomicAdd(word_, first ? kTurn - (arrivals - 1) : 1);
  }
  // All threads of the block call it.
  __device__ void Wait() const {
    if (threadIdx.x == 0) {
      while (!Turned(Load())) {
      }
    }
    __syncthreads();
  }
  // Waits for `reads` as well, whose blocks left nothing to see.
  __device__ void WaitAlsoFor(const BlocksBarrier& reads) const {
    if (threadIdx.x == 0) {
      bool done = false;
      while (!done) {
        const uint32_t others = reads.LoadRelaxed();  // both on their way at once
        done = Turned(Load()) && reads.Turned(others);
      }
    }
    __syncthreads();
  }

 private:
  __device__ bool Turned(uint32_t value) const { return ((value ^ before_) & kTurn) != 0; }
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
