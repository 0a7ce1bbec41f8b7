// The planning of a layer's experts where all of it is the device's.
#pragma once

#include <cstddef>

#include "runtime/backend/cuda/plan/expert_place.cuh"
#include "runtime/backend/cuda/plan/expert_table.h"
#include "runtime/backend/cuda/plan/token_division.cuh"

namespace moed::backend {

// What an expert's tokens need to find its tasks.
struct TaskPlace {
  ExpertTask* first;
  int next_token;
};

// How many tasks are in VRAM, how many behind the link, and how many of either have tiles: in one
// word, so that one sum over the block places all four.
struct TaskCounts {
  static constexpr int kBits = 16;
  unsigned long long packed = 0;

  __device__ TaskCounts() = default;
  __device__ TaskCounts(bool hit, int tasks, int leading)
      : packed((static_cast<unsigned long long>(leading) << 2 * kBits | tasks)
               << (hit ? 0 : kBits)) {}
  __device__ int vram() const { return Field(0); }
  __device__ int link() const { return Field(kBits); }
  // Of those, that have tiles.
  __device__ int leading_vram() const { return Field(2 * kBits); }
  __device__ int leading_link() const { return Field(3 * kBits); }

 private:
  __device__ int Field(int shift) const {
    return static_cast<int>(packed >> shift) & ((1 << kBits) - 1);
  }
};

// A thread's (row, rank) pairs of the routing, the first of them read at once.
class PlannedPairs {
 public:
  __device__ explicit PlannedPairs(const PlanExpertsArguments& a) : a_(a) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int i = h * kPlanThreads + threadIdx.x;
      const bool inside = i < a.rows * a.top_k;
      expert_[h] = inside ? ExpertOf(i) : -1;
      weight_[h] = inside ? a.weights[i] : 0.0f;
    }
  }
  // use(pair, expert, weight) for those that have a sequence.
  template <class Use>
  __device__ void ForEach(const Use& use) const {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      if (expert_[h] >= 0) use(h * kPlanThreads + threadIdx.x, expert_[h], weight_[h]);
    }
    for (int i = kHeld * kPlanThreads + threadIdx.x; i < a_.rows * a_.top_k; i += kPlanThreads) {
      if (const int expert = ExpertOf(i); expert >= 0) use(i, expert, a_.weights[i]);
    }
  }

 private:
  static constexpr int kHeld = 2;

  __device__ int ExpertOf(int i) const {
    const int expert = a_.ids[i];
    return a_.positions[i / a_.top_k] >= 0 ? expert : -1;
  }

  const PlanExpertsArguments& a_;
  int expert_[kHeld];
  float weight_[kHeld];
};

// Shared memory that PlanLayer wants: a TaskPlace and a count for each of the layer's experts.
__host__ __device__ constexpr size_t PlanSharedBytes(int experts) {
  return (sizeof(TaskPlace) + sizeof(int)) * experts;
}

// Places the thread's expert `e`, of `tokens`, and writes its tasks but for the tokens. `written`:
// by the block so far, the same in all threads.
__device__ inline void PlanExpert(const PlanExpertsArguments& a, int e, int tokens,
                                  const ExpertTableEntry& entry, const LayerOffers& offers,
                                  int* offers_taken, TaskCounts* written, TaskPlace* place) {
  ExpertSource source;
  if (tokens > 0) {
    source = Place(a, e, entry, offers, offers_taken, [](const ExpertTableEntry&) { return true; });
  } else if (e < a.layer.num_experts) {
    a.layer.uses[e] = ExpertUse{};
  }
  const bool hit = entry.slot >= 0;
  const int joined = JoinedTasks(a, hit);
  const int tasks = TasksOf(tokens);
  const TaskCounts own(hit, tasks, LeadingTasks(tasks, joined));
  unsigned long long total;
  TaskCounts before = *written;
  before.packed += ExclusiveSum(own.packed, &total);
  written->packed += total;
  if (tokens == 0) return;
  const int index = hit ? before.vram() : before.link();
  const int leading = hit ? before.leading_vram() : before.leading_link();
  ExpertTask* const first = (hit ? a.vram_tasks : a.link_tasks) + index;
  *place = {first, 0};
  ExpertTask task;
  task.expert = e;
  task.blob = source.blob;
  task.fill = source.fill;
  WriteTasks(task, tokens, a.tiles_per_expert, leading * a.tiles_per_expert, joined, first);
}

// From the layer's routing to its list of tasks, by a block of kPlanThreads; `memory`: aligned to 8
// bytes.
__device__ inline void PlanLayer(const PlanExpertsArguments& a, std::byte* memory) {
  __shared__ int offers_taken;
  const int experts = a.layer.num_experts;
  auto* places = reinterpret_cast<TaskPlace*>(memory);
  auto* counts = reinterpret_cast<int*>(places + experts);
  const PlannedPairs pairs(a);
  const int num_offered = *a.layer.num_offered;
  ExpertTableEntry entry;
  if (int(threadIdx.x) < experts) entry = a.layer.entries[threadIdx.x];
  if (threadIdx.x == 0) offers_taken = 0;
  for (int e = threadIdx.x; e < experts; e += kPlanThreads) counts[e] = 0;
  __syncthreads();
  pairs.ForEach([&](int, int expert, float) { atomicAdd(&counts[expert], 1); });
  __syncthreads();
  const LayerOffers offers = OffersOf(a.layer, num_offered, counts, kPlanThreads);

  TaskCounts written;
  for (int base = 0; base < experts; base += kPlanThreads) {
    const int e = base + threadIdx.x;
    if (base > 0 && e < experts) entry = a.layer.entries[e];
    PlanExpert(a, e, e < experts ? counts[e] : 0, entry, offers, &offers_taken, &written,
               places + e);
  }
  __syncthreads();
  pairs.ForEach([&](int i, int expert, float weight) {
    TaskPlace& place = places[expert];
    const int next = atomicAdd(&place.next_token, 1);
    ExpertTask& task = place.first[next / kTaskTokens];
    const int row = i / a.top_k;
    task.token[next % kTaskTokens] = row;
    task.target[next % kTaskTokens] = row;
    task.weight[next % kTaskTokens] = weight;
  });
  if (threadIdx.x == 0) {
    const int tiles = a.tiles_per_expert;
    *a.list = {.vram = {written.vram(), written.leading_vram() * tiles, a.vram_tasks},
               .link = {written.link(), written.leading_link() * tiles, a.link_tasks}};
    *a.layer.num_offered = offers.Left(offers_taken);
  }
}

// The same as PlanLayer for a single token, by one warp: lane r has the expert of rank r. Expects
// the layer's uses to be empty.
__device__ inline void PlanToken(const PlanExpertsArguments& a, int expert, float weight) {
  const int lane = threadIdx.x % 32;
  const bool chosen = lane < a.top_k && a.positions[0] >= 0;
  const int num_offered = *a.layer.num_offered;
  ExpertTableEntry entry;
  if (chosen) entry = a.layer.entries[expert];
  const int tiles = a.tiles_per_expert;
  const TokenDivision division(chosen, entry, tiles, kAllOverLink, a.layer.offered, num_offered);
  if (lane == 0) {
    const int vram = division.num_hits();
    *a.list = {.vram = {vram, vram * tiles, a.vram_tasks},
               .link = {division.num_links(), division.link_tiles, a.link_tasks}};
    *a.layer.num_offered = num_offered - division.filled;
  }
  if (!chosen) return;
  ExpertTask task = TaskOfToken(a, entry, expert, weight, division.offer, tiles);
  task.first_tile = division.task() * tiles;
  (division.hit() ? a.vram_tasks : a.link_tasks)[division.task()] = task;
}

}  // namespace moed::backend
