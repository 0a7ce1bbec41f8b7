// Which of the slots that the host offered to a layer a step may fill: from the last on, until one
// whose expert the step reads there, and what becomes of the experts that lie in those it fills.
#pragma once

#include <cstdint>

#include "runtime/backend/cuda/plan/expert_table.h"

namespace moed::backend {

// Offers [first_usable, count) may be filled, the last first.
struct LayerOffers {
  int count;
  int first_usable;

  __device__ int Left(int taken) const { return count - min(taken, count - first_usable); }
};

// By all `threads` of a block. `counts`: of each expert the step's tokens. A barrier lies before
// and one behind what it does, if anything is on offer.
__device__ inline LayerOffers OffersOf(const ExpertTableLayer& layer, int num_offered,
                                       const int* counts, int threads) {
  __shared__ int first_usable;
  if (num_offered == 0) return {0, 0};
  if (threadIdx.x == 0) first_usable = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < num_offered; i += threads) {
    const OfferedSlot offer = layer.offered[i];
    const bool used = offer.expert >= 0 && counts[offer.expert] > 0;
    if (used && layer.entries[offer.expert].slot == offer.slot) atomicMax(&first_usable, i + 1);
  }
  __syncthreads();
  return {num_offered, first_usable};
}

// For a single token, by a warp: how many of the last offers may be filled. `hits`: the lanes whose
// expert lies in VRAM, in their `slot`.
__device__ inline int OffersForToken(const OfferedSlot* offered, int num_offered, uint32_t hits,
                                     int slot) {
  constexpr uint32_t kAllLanes = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  const int offer = lane < num_offered ? offered[num_offered - 1 - lane].slot : -1;
  bool read = false;
  for (uint32_t left = hits; left != 0; left &= left - 1) {
    read |= __shfl_sync(kAllLanes, slot, __ffs(left) - 1) == offer;
  }
  const uint32_t all_read = __ballot_sync(kAllLanes, read);
  return min(num_offered, all_read != 0 ? __ffs(all_read) - 1 : 32);
}

// Now that `slot` is filled with another; `former` negative: nobody lay there.
__device__ inline void ForgetFormer(const ExpertTableLayer& layer, int former, int slot) {
  if (former >= 0 && layer.entries[former].slot == slot) layer.entries[former].slot = -1;
}

}  // namespace moed::backend
