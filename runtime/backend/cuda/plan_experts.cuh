// The planning of a layer's experts where all of it is the device's.
#pragma once

#include <cstddef>

#include "runtime/backend/cuda/expert_place.cuh"
#include "runtime/backend/cuda/expert_table.h"

namespace moed::backend {

// What an expert's tokens need to find its tasks.
struct TaskPlace {
  ExpertTask* first;
  int next_token;
};

// Both spans' task counts in one word, so that one sum over the block places both.
inline constexpr int kLinkShift = 16;

// Shared memory that PlanLayer wants: a TaskPlace and a count for each of the layer's experts.
__host__ __device__ constexpr size_t PlanSharedBytes(int experts) {
  return (sizeof(TaskPlace) + sizeof(int)) * experts;
}

// From the layer's routing to its list of tasks, by a block of kPlanThreads; `memory`: aligned to 8
// bytes.
__device__ inline void PlanLayer(const PlanExpertsArguments& a, std::byte* memory) {
  __shared__ int offers_taken;
  const int experts = a.layer.num_experts;
  auto* places = reinterpret_cast<TaskPlace*>(memory);
  auto* counts = reinterpret_cast<int*>(places + experts);
  if (threadIdx.x == 0) offers_taken = 0;
  for (int e = threadIdx.x; e < experts; e += kPlanThreads) counts[e] = 0;
  __syncthreads();
  const int pairs = a.rows * a.top_k;
  for (int i = threadIdx.x; i < pairs; i += kPlanThreads) {
    if (a.positions[i / a.top_k] >= 0) atomicAdd(&counts[a.ids[i]], 1);
  }
  __syncthreads();

  const int joined = max(a.joined_tasks, 1);
  int written = 0;  // tasks of both spans
  int leading = 0;  // of those in VRAM, that have tiles
  for (int base = 0; base < experts; base += kPlanThreads) {
    const int e = base + threadIdx.x;
    const int tokens = e < experts ? counts[e] : 0;
    ExpertTask task;
    bool hit = true;
    if (tokens > 0) {
      task = Place(a, e, &offers_taken);
      hit = a.layer.uses[e].kind == ExpertUseKind::kHit;
    } else if (e < experts) {
      a.layer.uses[e] = ExpertUse{};
    }
    const int tasks = (tokens + kTaskTokens - 1) / kTaskTokens;
    int total;
    const int before = written + ExclusiveSum(hit ? tasks : tasks << kLinkShift, &total);
    written += total;
    const int leads_before = leading + ExclusiveSum(hit ? LeadingTasks(tasks, joined) : 0, &total);
    leading += total;
    if (tokens == 0) continue;
    const int index = hit ? before & ((1 << kLinkShift) - 1) : before >> kLinkShift;
    const int first_tile = (hit ? leads_before : index) * a.tiles_per_expert;
    ExpertTask* const first = (hit ? a.vram_tasks : a.link_tasks) + index;
    places[e] = {first, 0};
    WriteTasks(task, tokens, a.tiles_per_expert, first_tile, hit ? joined : 1, first);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < pairs; i += kPlanThreads) {
    const int row = i / a.top_k;
    if (a.positions[row] < 0) continue;
    TaskPlace& expert = places[a.ids[i]];
    const int place = atomicAdd(&expert.next_token, 1);
    ExpertTask& task = expert.first[place / kTaskTokens];
    task.token[place % kTaskTokens] = row;
    task.target[place % kTaskTokens] = row;
    task.weight[place % kTaskTokens] = a.weights[i];
  }
  if (threadIdx.x == 0) {
    const int vram = written & ((1 << kLinkShift) - 1);
    const int link = written >> kLinkShift;
    *a.list = {.vram = {vram, leading * a.tiles_per_expert, a.vram_tasks},
               .link = {link, link * a.tiles_per_expert, a.link_tasks}};
    *a.layer.num_offered -= min(offers_taken, *a.layer.num_offered);
  }
}

// A token's experts by a warp, lane r the one of rank r: which lie in VRAM, and which offered slots
// the others fill while there are some.
struct TokenPlan {
  uint32_t hits;
  uint32_t colds;
  uint32_t fillable;

  __device__ TokenPlan(bool chosen, const ExpertTableEntry& entry)
      : hits(__ballot_sync(0xffffffffu, chosen && entry.slot >= 0)),
        colds(__ballot_sync(0xffffffffu, chosen && entry.slot < 0)),
        fillable(__ballot_sync(0xffffffffu, chosen && entry.slot < 0 && entry.fill_allowed != 0)) {}
  __device__ int vram() const { return __popc(hits); }
  __device__ int link() const { return __popc(colds); }
  __device__ bool hit() const { return (hits >> lane() & 1) != 0; }
  // Of the lane's expert among those in VRAM or the others.
  __device__ int index() const { return __popc((hit() ? hits : colds) & before()); }
  // That the lane's expert fills, of `num_offered`; negative: none.
  __device__ int Offer(int num_offered) const {
    return (fillable >> lane() & 1) != 0 ? num_offered - 1 - __popc(fillable & before()) : -1;
  }
  __device__ int OffersLeft(int num_offered) const {
    return max(0, num_offered - __popc(fillable));
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static uint32_t before() { return (1u << lane()) - 1; }
};

// The same as PlanLayer for a single token, by one warp: lane r has the expert of rank r. The
// layer's uses are empty.
__device__ inline void PlanToken(const PlanExpertsArguments& a, int expert, float weight) {
  const int lane = threadIdx.x % 32;
  const bool chosen = lane < a.top_k && a.positions[0] >= 0;
  const int num_offered = *a.layer.num_offered;
  ExpertTableEntry entry;
  if (chosen) entry = a.layer.entries[expert];
  const TokenPlan plan(chosen, entry);
  if (lane == 0) {
    const int tiles = a.tiles_per_expert;
    *a.list = {.vram = {plan.vram(), plan.vram() * tiles, a.vram_tasks},
               .link = {plan.link(), plan.link() * tiles, a.link_tasks}};
    *a.layer.num_offered = plan.OffersLeft(num_offered);
  }
  if (!chosen) return;
  ExpertTask task =
      TaskOfToken(a, entry, expert, weight, plan.Offer(num_offered), a.tiles_per_expert);
  task.first_tile = plan.index() * a.tiles_per_expert;
  (plan.hit() ? a.vram_tasks : a.link_tasks)[plan.index()] = task;
}

}  // namespace moed::backend
