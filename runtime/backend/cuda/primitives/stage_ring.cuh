// A block's ring of shared-memory stages between its first warp, which starts bulk copies into
// them, and all warps, which read a stage and go on without waiting for one another: a stage is
// filled anew when the last of them has left it. Hopper.
#pragma once

#include "runtime/backend/cuda/primitives/async_copy.cuh"
#include "runtime/backend/cuda/primitives/tile_pipeline.cuh"

namespace moed::backend {

template <int kStages>
struct StageBarriers {
  uint64_t filled[kStages];
  uint64_t left[kStages];
};

#if __CUDA_ARCH__ >= 900

template <int kStages>
class StageRing {
 public:
  // `memory`: kStages * stage_bytes of shared memory. All threads call it; `readers` warps will
  // read every stage.
  __device__ StageRing(std::byte* memory, int stage_bytes, StageBarriers<kStages>* barriers,
                       int readers)
      : memory_(memory), stage_bytes_(stage_bytes), barriers_(barriers) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) InitBarrier(SharedAddress(&barriers->left[i]), readers);
      InitCopyBarriers(barriers->filled, kStages);
    }
    __syncthreads();
  }

  // Where a warp stands: the stage, and the parity of its phase.
  struct Place {
    int stage = 0;
    int parity = 0;

    __device__ void Next() {
      if (++stage < kStages) return;
      stage = 0;
      parity ^= 1;
    }
  };

  __device__ std::byte* Stage(const Place& place) const {
    return memory_ + place.stage * stage_bytes_;
  }
  // By the filling warp before it copies: waits for the readers of what was there, but for the
  // first round.
  __device__ void WaitToFill(const Place& place, bool first_round) const {
    if (!first_round) WaitForBytes(Left(place), place.parity ^ 1);
  }
  __device__ uint32_t Filled(const Place& place) const {
    return SharedAddress(&barriers_->filled[place.stage]);
  }
  __device__ void WaitForFill(const Place& place) const {
    WaitForBytes(Filled(place), place.parity);
  }
  // All lanes of a warp have read what they want.
  __device__ void Leave(const Place& place) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) Arrive(Left(place));
  }

 private:
  __device__ uint32_t Left(const Place& place) const {
    return SharedAddress(&barriers_->left[place.stage]);
  }

  std::byte* memory_;
  int stage_bytes_;
  StageBarriers<kStages>* barriers_;
};

#endif

}  // namespace moed::backend
