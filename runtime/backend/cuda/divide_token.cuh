// The planning of a single token's experts where the CPU takes part: as DivideLayer, by one warp.
#pragma once

#include "runtime/backend/cold_division.h"
#include "runtime/backend/cuda/cold_plan.h"
#include "runtime/backend/cuda/expert_place.cuh"

namespace moed::backend {

// Lane r's expert, of rank r.
struct TokenExpert {
  ExpertTableEntry entry;
  bool chosen = false;
  bool hit = false;
  int offer = -1;  // of the layer's offers, the one that it fills
  int tiles = 0;   // that are the device's

  __device__ bool cold() const { return chosen && !hit; }
};

// Gives offered slots to those that are allowed one, in order of rank; the others wait. Returns how
// many were given.
__device__ inline int TakeOffers(const DivideExpertsArguments& a, int total_cost,
                                 TokenExpert* expert) {
  const int lane = threadIdx.x % 32;
  const int tiles = a.plan.tiles_per_expert;
  const int num_offered = *a.plan.layer.num_offered;
  const uint32_t waited = expert->entry.fill_allowed - 1;
  int filled = 0;
  for (uint32_t left =
           __ballot_sync(0xffffffffu, expert->cold() && expert->entry.fill_allowed != 0);
       left != 0 && filled < num_offered; left &= left - 1) {
    const bool fits = FillFits(a.state->step.link_share, total_cost, filled * tiles, tiles,
                               __shfl_sync(0xffffffffu, waited, __ffs(left) - 1));
    if (fits && lane == __ffs(left) - 1) expert->offer = num_offered - 1 - filled;
    filled += fits ? 1 : 0;
  }
  __syncwarp();
  if (lane == 0) *a.plan.layer.num_offered = num_offered - filled;
  return filled;
}

// From a token's routing to the list of tasks and the CPU's part: lane r has the expert of rank r.
// The layer's uses are empty.
__device__ inline void DivideToken(const DivideExpertsArguments& a, int id, float weight) {
  constexpr uint32_t kAll = 0xffffffffu;
  const PlanExpertsArguments& plan = a.plan;
  const int lane = threadIdx.x % 32;
  const uint32_t before = (1u << lane) - 1;
  const int tiles = plan.tiles_per_expert;
  TokenExpert expert;
  expert.chosen = lane < plan.top_k && plan.positions[0] >= 0;
  if (expert.chosen) expert.entry = plan.layer.entries[id];
  expert.hit = expert.chosen && expert.entry.slot >= 0;
  const uint32_t hits = __ballot_sync(kAll, expert.hit);
  const int total_cost = __popc(__ballot_sync(kAll, expert.cold())) * tiles;
  const int filled = TakeOffers(a, total_cost, &expert);
  const int64_t budget = LinkBudget(a.state->step.link_share, total_cost, filled * tiles);
  const bool divided = expert.cold() && expert.offer < 0;
  const uint32_t colds = __ballot_sync(kAll, divided);
  expert.tiles =
      divided ? LinkTiles(budget, int64_t{tiles} * __popc(colds & before), tiles, 1) : tiles;

  // Whole experts first; of the others at most one is cut.
  const bool over_link = expert.cold() && expert.tiles > 0;
  const uint32_t whole = __ballot_sync(kAll, over_link && expert.tiles == tiles);
  const uint32_t cut = __ballot_sync(kAll, over_link && expert.tiles < tiles);
  const bool for_cpu = divided && expert.tiles < tiles;
  const uint32_t items = __ballot_sync(kAll, for_cpu);
  const int cut_tiles = __shfl_sync(kAll, expert.tiles, cut != 0 ? __ffs(cut) - 1 : 0);
  const int link_tiles = __popc(whole) * tiles + (cut != 0 ? cut_tiles : 0);
  const bool mail = a.state->step.failed == 0;  // else the CPU may be reading what was given up
  if (lane == 0) {
    const int vram = __popc(hits);
    *plan.list = {.vram = {vram, vram * tiles, plan.vram_tasks},
                  .link = {__popc(whole | cut), link_tiles, plan.link_tasks}};
    a.state->num_items = __popc(items);
    a.state->link_cost = link_tiles;
    if (mail) {
      a.mailbox.request->layer = a.layer;
      a.mailbox.request->rows = 1;
      a.mailbox.request->num_items = __popc(items);
    }
  }
  if (!expert.chosen) return;
  if (for_cpu && mail) {
    const int item = __popc(items & before);
    const int first_neuron = expert.tiles * kTileNeurons;
    a.mailbox.items[item] = {id, first_neuron, tiles * kTileNeurons - first_neuron, item, 1};
    a.mailbox.pairs[item] = {0, weight};
  }
  ExpertTask task = TaskOfToken(plan, expert.entry, id, weight, expert.offer, expert.tiles);
  if (!expert.hit && !over_link) return;
  const bool is_whole = expert.tiles == tiles;
  const int index = __popc((expert.hit ? hits : whole) & before);
  const int place = expert.hit || is_whole ? index : __popc(whole);
  task.first_tile = place * tiles;
  (expert.hit ? plan.vram_tasks : plan.link_tasks)[place] = task;
}

}  // namespace moed::backend
