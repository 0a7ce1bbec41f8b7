// What the planning kernels share: looking experts up in the table, marking there and in the trace
// what becomes of them, writing their tasks, and sums over a block.
#pragma once

#include "runtime/backend/cuda/plan/expert_offers.cuh"
#include "runtime/backend/cuda/plan/expert_table.h"

namespace moed::backend {

inline constexpr int kPlanThreads = 256;
inline constexpr int kPlanWarps = kPlanThreads / 32;

// Where a chosen expert is read from, and what becomes of it.
struct ExpertSource {
  const std::byte* blob = nullptr;
  std::byte* fill = nullptr;  // the slot to write it into, or null
  int32_t former = -1;        // that may lie there
  ExpertUse use;
};

// Of expert `id`, which has `entry`, and may fill the layer's offer number `offer` if that is not
// negative. Changes nothing.
__device__ inline ExpertSource SourceOfExpert(const PlanExpertsArguments& a,
                                              const ExpertTableEntry& entry, int id, int offer) {
  ExpertSource source;
  if (entry.slot >= 0) {
    source.blob = a.slots + entry.slot * a.blob_bytes;
    source.use = {ExpertUseKind::kHit, entry.slot, entry.generation};
    return source;
  }
  source.blob = a.layer.experts + id * a.blob_bytes;
  source.use = {ExpertUseKind::kCold};
  if (offer >= 0) {
    const OfferedSlot offered = a.layer.offered[offer];
    source.fill = a.slots + offered.slot * a.blob_bytes;
    source.former = offered.expert;
    source.use = {ExpertUseKind::kFilled, offered.slot, offered.generation};
  }
  return source;
}

// In the table: the slot of an expert that fills one, where `former` may lie, or one more wait of
// an expert that may fill one and did not. `fill_allowed`: of the expert's entry.
__device__ inline void MarkUse(const PlanExpertsArguments& a, int id, uint32_t fill_allowed,
                               const ExpertUse& use, int former) {
  ExpertTableEntry& entry = a.layer.entries[id];
  if (use.kind == ExpertUseKind::kFilled) {
    entry = {use.slot, use.generation, 0};
    ForgetFormer(a.layer, former, use.slot);
  }
  if (use.kind == ExpertUseKind::kCold && fill_allowed != 0) entry.fill_allowed = fill_allowed + 1;
}

// Marks the use of `expert`, whose `entry` was read, and takes one of the layer's offered slots for
// it, if its entry allows that, fits(entry) agrees and one is left. The table names the slot at
// once: its next reader is this layer in the next step, after the fill. `offers_taken`: how often
// the block asked for one, in shared memory.
template <class Fits>
__device__ ExpertSource Place(const PlanExpertsArguments& a, int expert,
                              const ExpertTableEntry& entry, const LayerOffers& offers,
                              int* offers_taken, const Fits& fits) {
  int offer = -1;
  if (entry.slot < 0 && entry.fill_allowed != 0 && fits(entry)) {
    offer = offers.count - 1 - atomicAdd(offers_taken, 1);
    if (offer < offers.first_usable) offer = -1;
  }
  const ExpertSource source = SourceOfExpert(a, entry, expert, offer);
  const ExpertUse& use = source.use;
  if (use.kind == ExpertUseKind::kFilled) {
    a.layer.entries[expert] = {use.slot, use.generation, 0};
    ForgetFormer(a.layer, source.former, use.slot);
  }
  a.layer.uses[expert] = use;
  return source;
}

// Marks the use of a single token's expert in the trace and the table, and gives its task: of its
// first `tiles`, which are the device's; the rest are the CPU's. Without its place in the span.
__device__ inline ExpertTask TaskOfToken(const PlanExpertsArguments& a,
                                         const ExpertTableEntry& entry, int id, float weight,
                                         int offer, int tiles) {
  const ExpertSource source = SourceOfExpert(a, entry, id, offer);
  ExpertTask task;
  task.expert = id;
  task.num_tokens = 1;
  task.num_tiles = tiles;
  task.weight[0] = weight;
  task.blob = source.blob;
  task.fill = source.fill;
  ExpertUse use = source.use;
  if (use.kind == ExpertUseKind::kCold) {
    use.cpu_neurons = (a.tiles_per_expert - tiles) * kTileNeurons;
  }
  MarkUse(a, id, entry.fill_allowed, use, source.former);
  a.layer.uses[id] = use;
  return task;
}

// Of an expert that `tokens` tokens chose.
__device__ inline int TasksOf(int tokens) { return (tokens + kTaskTokens - 1) / kTaskTokens; }

// From `tasks` on, as many copies of `task` as `tokens` tokens need, up to `joined` of them joined;
// which tokens is for others to write. Each that leads has `tiles` tiles, the first of them is
// number `first_tile` of the span.
__device__ inline void WriteTasks(ExpertTask task, int tokens, int tiles, int first_tile,
                                  int joined, ExpertTask* tasks) {
  const int count = TasksOf(tokens);
  for (int i = 0; i < count; ++i) {
    const bool leads = i % joined == 0;
    task.num_tokens = min(kTaskTokens, tokens - i * kTaskTokens);
    task.num_joined = leads ? min(joined, count - i) : 0;
    task.first_tile = first_tile;
    task.num_tiles = leads ? tiles : 0;
    first_tile += task.num_tiles;
    tasks[i] = task;
    task.fill = nullptr;  // one of an expert's tasks fills its slot
  }
}

// How many of an expert's tasks are joined.
__device__ inline int JoinedTasks(const PlanExpertsArguments& a, bool hit) {
  return max(hit ? a.joined_tasks : a.joined_link_tasks, 1);
}

// Of `tasks` tasks of an expert, those that have tiles.
__device__ inline int LeadingTasks(int tasks, int joined) { return (tasks + joined - 1) / joined; }

// The sum of `value` over the threads before this one, and over all into `total`.
template <class Number>
__device__ Number ExclusiveSum(Number value, Number* total) {
  __shared__ Number warp_sums[kPlanWarps];
  const int lane = threadIdx.x % 32;
  Number sum = value;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const Number before = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += before;
  }
  __syncthreads();  // the last use of warp_sums
  if (lane == 31) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  Number before = 0;
  *total = 0;
#pragma unroll
  for (int w = 0; w < kPlanWarps; ++w) {
    if (w < static_cast<int>(threadIdx.x) / 32) before += warp_sums[w];
    *total += warp_sums[w];
  }
  return before + sum - value;
}

}  // namespace moed::backend
