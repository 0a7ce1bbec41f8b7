// The planning of a single token's experts where the CPU takes part and the expert kernels read a
// list of tasks (those that choose for themselves divide too, token_choice.cuh): as DivideLayer, by
// one warp.
#pragma once

#include "runtime/backend/cuda/plan/cold_plan.h"
#include "runtime/backend/cuda/plan/cold_post.cuh"
#include "runtime/backend/cuda/plan/expert_place.cuh"
#include "runtime/backend/cuda/plan/token_division.cuh"

namespace moed::backend {

// From a token's routing to the list of tasks and the CPU's part: lane r has the expert of rank r.
// Expects the layer's uses to be empty.
__device__ inline void DivideToken(const DivideExpertsArguments& a, int id, float weight) {
  const PlanExpertsArguments& plan = a.plan;
  const int lane = threadIdx.x % 32;
  const int tiles = plan.tiles_per_expert;
  const bool chosen = lane < plan.top_k && plan.positions[0] >= 0;
  ExpertTableEntry entry;
  if (chosen) entry = plan.layer.entries[id];
  const int num_offered = *plan.layer.num_offered;
  const TokenDivision division(chosen, entry, tiles, a.state->step.link_share, plan.layer.offered,
                               num_offered);
  __syncwarp();
  const bool mail = a.state->step.failed == 0;  // else the CPU may be reading what was given up
  if (lane == 0) {
    const int vram = division.num_hits();
    *plan.list = {.vram = {vram, vram * tiles, plan.vram_tasks},
                  .link = {division.num_links(), division.link_tiles, plan.link_tasks}};
    *plan.layer.num_offered = num_offered - division.filled;
    a.state->num_items = division.num_items();
    a.state->link_cost = division.link_tiles;
    if (mail) WriteTokenRequest(a.mailbox, a.layer, division.num_items());
  }
  if (!chosen) return;
  if (division.item() >= 0 && mail) {
    WriteTokenItem(a.mailbox, division.item(), id, division.tiles * kTileNeurons,
                   (tiles - division.tiles) * kTileNeurons, weight);
  }
  ExpertTask task = TaskOfToken(plan, entry, id, weight, division.offer, division.tiles);
  const int index = division.task();
  if (index < 0) return;
  task.first_tile = index * tiles;
  (division.hit() ? plan.vram_tasks : plan.link_tasks)[index] = task;
}

}  // namespace moed::backend
