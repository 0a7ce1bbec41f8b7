// Who computes the experts of a single token: by a warp, from the table and what the link shall
// take. Of the cold ones that fill no slot the CPU has the highest in rank, since these are guessed
// ahead best (cpu/cold_forecast.h). Changes nothing, so that every block that needs the division
// can make it for itself.
#pragma once

#include <cstdint>

#include "runtime/backend/cold_division.h"
#include "runtime/backend/cuda/plan/expert_offers.cuh"
#include "runtime/backend/cuda/plan/expert_table.h"

namespace moed::backend {

// Lane r has the expert of rank r.
struct TokenDivision {
  // Lanes whose expert
  uint32_t hits;      // lies in VRAM,
  uint32_t whole;     // comes over the link,
  uint32_t cut;       // comes over the link in part, which is one at most,
  uint32_t for_cpu;   // is the CPU's, or the rest of it,
  uint32_t fillable;  // may fill a slot.
  int filled;         // those that do, the layer's last offers
  int link_tiles;
  // The lane's:
  int offer;  // of the layer's offers, the one that its expert fills; negative: none
  int tiles;  // that are the device's

  // `link_share`: kAllOverLink where the CPU takes no part; `offered`: the layer's. All lanes call
  // it.
  __device__ TokenDivision(bool chosen, const ExpertTableEntry& entry, int expert_tiles,
                           uint32_t link_share, const OfferedSlot* offered, int num_offered)
      : hits(Lanes(chosen && entry.slot >= 0)),
        whole(0),
        cut(0),
        for_cpu(0),
        fillable(Lanes(chosen && entry.slot < 0 && entry.fill_allowed != 0)),
        filled(0),
        link_tiles(0),
        offer(-1),
        tiles(expert_tiles) {
    const bool cold = chosen && entry.slot < 0;
    const uint32_t colds = Lanes(cold);
    if (colds == 0) return;
    const int total_cost = __popc(colds) * expert_tiles;
    if (fillable != 0 && num_offered > 0) {
      TakeOffers(entry.fill_allowed - 1, total_cost, link_share,
                 OffersForToken(offered, num_offered, hits, entry.slot), num_offered);
    }
    const bool divided = cold && offer < 0;
    const uint32_t behind_this = Lanes(divided) & ~before() & ~(1u << lane());
    if (divided) {
      const int64_t budget = LinkBudget(link_share, total_cost, int64_t{filled} * expert_tiles);
      tiles = LinkTiles(budget, int64_t{expert_tiles} * __popc(behind_this), expert_tiles, 1);
    }
    whole = Lanes(cold && tiles == expert_tiles);
    cut = Lanes(cold && tiles > 0 && tiles < expert_tiles);
    for_cpu = Lanes(cold && tiles < expert_tiles);
    const int cut_tiles = __shfl_sync(kAllLanes, tiles, cut != 0 ? __ffs(cut) - 1 : 0);
    link_tiles = __popc(whole) * expert_tiles + (cut != 0 ? cut_tiles : 0);
  }

  __device__ bool hit() const { return Has(hits); }
  __device__ int num_hits() const { return __popc(hits); }
  __device__ int num_links() const { return __popc(whole | cut); }
  __device__ int num_items() const { return __popc(for_cpu); }
  // Of the lane's expert among those in VRAM or those over the link, of which the one that is cut
  // is last; negative: it is in neither.
  __device__ int task() const {
    if (hit()) return __popc(hits & before());
    if (Has(whole)) return __popc(whole & before());
    return Has(cut) ? __popc(whole) : -1;
  }
  // Of the lane's expert among the CPU's; negative: it is not.
  __device__ int item() const { return Has(for_cpu) ? __popc(for_cpu & before()) : -1; }

 private:
  static constexpr uint32_t kAllLanes = 0xffffffffu;

  __device__ static uint32_t Lanes(bool value) { return __ballot_sync(kAllLanes, value); }
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static uint32_t before() { return (1u << lane()) - 1; }
  __device__ static bool Has(uint32_t lanes) { return (lanes >> lane() & 1) != 0; }

  // Gives offered slots to those that are allowed one, in order of rank; the others wait.
  __device__ void TakeOffers(uint32_t waited, int total_cost, uint32_t link_share, int usable,
                             int num_offered) {
    for (uint32_t left = fillable; left != 0 && filled < usable; left &= left - 1) {
      const int next = __ffs(left) - 1;
      const bool fits = FillFits(link_share, total_cost, int64_t{filled} * tiles, tiles,
                                 __shfl_sync(kAllLanes, waited, next));
      if (!fits) continue;
      if (lane() == next) offer = num_offered - 1 - filled;
      ++filled;
    }
  }
};

}  // namespace moed::backend
