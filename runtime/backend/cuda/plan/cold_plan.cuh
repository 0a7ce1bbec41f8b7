// The planning of a layer's experts where the CPU takes part: first where each lies (Place), then
// how much of the cold ones the link brings (Divide), then which tokens go where (PlacePairs).
#pragma once

#include <cstddef>

#include "runtime/backend/cold_division.h"
#include "runtime/backend/cuda/plan/cold_plan.h"
#include "runtime/backend/cuda/plan/expert_place.cuh"

namespace moed::backend {

static_assert(kColdTileNeurons == kTileNeurons &&
              kColdPassTokens == kMostJoinedTasks * kTaskTokens);

// Experts that a thread compares with its own at once: as many zeros may stand behind the last.
inline constexpr int kDividedAtOnce = 8;

__host__ __device__ constexpr int PaddedDivided(int experts) {
  return (experts + kDividedAtOnce - 1) / kDividedAtOnce * kDividedAtOnce;
}

// Of each expert of the layer, in shared memory.
struct DividedExperts {
  int* divided;     // tokens; 0: it is not cold, or fills a slot; padded
  int* counts;      // tokens
  int* first_task;  // of the span that it is in; -1: no task
  int* first_pair;  // in the mailbox; -1: nothing for the CPU
  int* next_place;  // how many of the tokens have a place so far
};

// An expert of which the device computes the first tiles.
struct CutExpert {
  int expert;
  int tiles;
};

// An expert's task but for its tokens and tiles, from what Place left in the trace.
__device__ inline ExpertTask TaskOf(const PlanExpertsArguments& a, int expert) {
  const ExpertUse use = a.layer.uses[expert];
  ExpertTask task;
  task.expert = expert;
  task.blob = a.layer.experts + expert * a.blob_bytes;
  if (use.kind == ExpertUseKind::kHit) task.blob = a.slots + use.slot * a.blob_bytes;
  if (use.kind == ExpertUseKind::kFilled) task.fill = a.slots + use.slot * a.blob_bytes;
  return task;
}

// Where the tasks of a chosen expert stand.
__device__ inline ExpertTask* SpanOf(const PlanExpertsArguments& a, int expert) {
  return a.layer.uses[expert].kind == ExpertUseKind::kHit ? a.vram_tasks : a.link_tasks;
}

__device__ inline void CountTokens(const PlanExpertsArguments& a, const DividedExperts& experts) {
  for (int e = threadIdx.x; e < a.layer.num_experts; e += kPlanThreads) {
    experts.counts[e] = experts.next_place[e] = 0;
  }
  for (int e = threadIdx.x; e < PaddedDivided(a.layer.num_experts); e += kPlanThreads) {
    experts.divided[e] = 0;
  }
  __syncthreads();
  const int pairs = a.rows * a.top_k;
  for (int i = threadIdx.x; i < pairs; i += kPlanThreads) {
    if (a.positions[i / a.top_k] >= 0) atomicAdd(&experts.counts[a.ids[i]], 1);
  }
  __syncthreads();
}

// Whether the expert of `entry`, which costs `own`, may fill a slot. `filling_cost`: what all those
// cost, of any thread of the block, that may so far; shared.
__device__ inline bool TakeFill(const ExpertTableEntry& entry, uint32_t link_share, int total_cost,
                                int own, int* filling_cost) {
  const int before = atomicAdd(filling_cost, own);
  if (FillFits(link_share, total_cost, before, own, entry.fill_allowed - 1)) return true;
  atomicSub(filling_cost, own);
  return false;
}

__device__ inline int CostOf(const DivideExpertsArguments& a, const DividedExperts& experts,
                             int expert) {
  return static_cast<int>(ColdCost(a.plan.tiles_per_expert, experts.counts[expert]));
}

// Places every chosen expert; returns what the link may take of those that fill no slot.
__device__ inline int64_t PlaceAll(const DivideExpertsArguments& a, const DividedExperts& experts,
                                   const LayerOffers& offers, int* offers_taken) {
  __shared__ int filling_cost;
  if (threadIdx.x == 0) filling_cost = 0;
  const uint32_t link_share = a.state->step.link_share;
  int cost = 0;
  for (int e = threadIdx.x; e < a.plan.layer.num_experts; e += kPlanThreads) {
    if (a.plan.layer.entries[e].slot < 0) cost += CostOf(a, experts, e);
  }
  int total_cost;
  ExclusiveSum(cost, &total_cost);
  for (int e = threadIdx.x; e < a.plan.layer.num_experts; e += kPlanThreads) {
    if (experts.counts[e] == 0) {
      a.plan.layer.uses[e] = ExpertUse{};
      continue;
    }
    const int own = CostOf(a, experts, e);
    const ExpertTableEntry entry = a.plan.layer.entries[e];
    bool fits = false;
    const ExpertSource source =
        Place(a.plan, e, entry, offers, offers_taken, [&](const ExpertTableEntry& waiting) {
          return fits = TakeFill(waiting, link_share, total_cost, own, &filling_cost);
        });
    if (source.use.kind != ExpertUseKind::kCold) continue;
    experts.divided[e] = experts.counts[e];
    if (fits) atomicSub(&filling_cost, own);  // there was no slot for it
    if (entry.fill_allowed != 0) ++a.plan.layer.entries[e].fill_allowed;
  }
  __syncthreads();
  return LinkBudget(link_share, total_cost, filling_cost);
}

// Of the experts that are divided, those that go to the link before `expert`.
__device__ inline int CostBefore(const DivideExpertsArguments& a, const DividedExperts& experts,
                                 int expert) {
  const int tokens = experts.divided[expert];
  int passes = 0;
  for (int begin = 0; begin < a.plan.layer.num_experts; begin += kDividedAtOnce) {
#pragma unroll
    for (int i = 0; i < kDividedAtOnce; ++i) {
      const int other_tokens = experts.divided[begin + i];
      if (ComesBefore(other_tokens, begin + i, tokens, expert)) passes += ColdPasses(other_tokens);
    }
  }
  return passes * a.plan.tiles_per_expert;
}

// Puts each (row, rank) pair into its expert's tasks and the CPU's list.
__device__ inline void PlacePairs(const DivideExpertsArguments& a, const DividedExperts& experts) {
  const int pairs = a.plan.rows * a.plan.top_k;
  for (int i = threadIdx.x; i < pairs; i += kPlanThreads) {
    const int row = i / a.plan.top_k;
    if (a.plan.positions[row] < 0) continue;
    const int expert = a.plan.ids[i];
    const int place = atomicAdd(&experts.next_place[expert], 1);
    const float weight = a.plan.weights[i];
    if (experts.first_pair[expert] >= 0 && a.state->step.failed == 0) {
      a.mailbox.pairs[experts.first_pair[expert] + place] = {row, weight};
    }
    if (experts.first_task[expert] < 0) continue;
    ExpertTask& task = SpanOf(a.plan, expert)[experts.first_task[expert] + place / kTaskTokens];
    task.token[place % kTaskTokens] = row;
    task.target[place % kTaskTokens] = row;
    task.weight[place % kTaskTokens] = weight;
  }
}

// How many of each the block has written so far; the same in all threads.
struct Written {
  int vram_tasks = 0;
  int leading_tasks = 0;  // of those, that have tiles
  int link_tasks = 0;
  int leading_link_tasks = 0;  // likewise
  int items = 0;
  int pairs = 0;
  int link_cost = 0;
};

// Divides expert `e` between the link and the CPU and writes its part of both lists but for the
// tokens; all threads of the block call it, each with its own expert or one beyond the last. `cut`:
// the one of which both compute a part, whose tasks are left to write.
__device__ inline void Divide(const DivideExpertsArguments& a, const DividedExperts& experts, int e,
                              int64_t budget, Written* written, CutExpert* cut) {
  const int tiles = a.plan.tiles_per_expert;
  const int tokens = e < a.plan.layer.num_experts ? experts.counts[e] : 0;
  const bool cold = tokens > 0 && experts.divided[e] > 0;
  const int over_link = cold ? LinkTiles(budget, CostBefore(a, experts, e), tiles, tokens) : tiles;
  const bool whole = tokens > 0 && over_link == tiles;
  const bool cpu = cold && over_link < tiles;
  const bool hit = tokens > 0 && a.plan.layer.uses[e].kind == ExpertUseKind::kHit;
  const int tasks = whole ? TasksOf(tokens) : 0;
  int sum;
  const int vram_task = written->vram_tasks + ExclusiveSum(hit ? tasks : 0, &sum);
  written->vram_tasks += sum;
  const int joined = JoinedTasks(a.plan, hit);
  const int leading = LeadingTasks(tasks, joined);
  const int leading_task = written->leading_tasks + ExclusiveSum(hit ? leading : 0, &sum);
  written->leading_tasks += sum;
  const int link_task = written->link_tasks + ExclusiveSum(hit ? 0 : tasks, &sum);
  written->link_tasks += sum;
  const int leading_link_task = written->leading_link_tasks + ExclusiveSum(hit ? 0 : leading, &sum);
  written->leading_link_tasks += sum;
  const int task = hit ? vram_task : link_task;
  const int item = written->items + ExclusiveSum(cpu ? 1 : 0, &sum);
  written->items += sum;
  const int pair = written->pairs + ExclusiveSum(cpu ? tokens : 0, &sum);
  written->pairs += sum;
  ExclusiveSum(hit ? 0 : static_cast<int>(ColdCost(over_link, tokens)), &sum);
  written->link_cost += sum;
  if (e >= a.plan.layer.num_experts) return;
  experts.first_task[e] = whole ? task : -1;
  experts.first_pair[e] = cpu ? pair : -1;
  if (whole) {
    WriteTasks(TaskOf(a.plan, e), tokens, tiles, (hit ? leading_task : leading_link_task) * tiles,
               joined, SpanOf(a.plan, e) + task);
  }
  if (!cpu) return;
  if (over_link > 0) *cut = {e, over_link};
  // The CPU may still be reading a request that was given up.
  if (a.state->step.failed != 0) return;
  const int first_neuron = over_link * kTileNeurons;
  const int num_neurons = tiles * kTileNeurons - first_neuron;
  a.mailbox.items[item] = {e, first_neuron, num_neurons, pair, tokens};
  a.plan.layer.uses[e].cpu_neurons = num_neurons;
}

// Shared memory that DivideLayer wants: five ints for each expert of the layer.
__host__ __device__ constexpr size_t DivideSharedBytes(int experts) {
  return sizeof(int) * (4 * experts + PaddedDivided(experts));
}

// From the layer's routing to its list of tasks and the CPU's part, by a block of kPlanThreads.
__device__ inline void DivideLayer(const DivideExpertsArguments& a, int* shared) {
  __shared__ int offers_taken;
  __shared__ CutExpert cut;
  const int num_experts = a.plan.layer.num_experts;
  int* const rest = shared + PaddedDivided(num_experts);
  const DividedExperts experts = {shared, rest, rest + num_experts, rest + 2 * num_experts,
                                  rest + 3 * num_experts};
  if (threadIdx.x == 0) {
    offers_taken = 0;
    cut = {-1, 0};
  }
  const int num_offered = *a.plan.layer.num_offered;
  CountTokens(a.plan, experts);
  const LayerOffers offers = OffersOf(a.plan.layer, num_offered, experts.counts, kPlanThreads);
  const int64_t budget = PlaceAll(a, experts, offers, &offers_taken);
  Written written;
  for (int base = 0; base < num_experts; base += kPlanThreads) {
    Divide(a, experts, base + threadIdx.x, budget, &written, &cut);
  }
  __syncthreads();
  const int tiles = a.plan.tiles_per_expert;
  const int cut_tasks = cut.expert < 0 ? 0 : TasksOf(experts.counts[cut.expert]);
  const int joined = JoinedTasks(a.plan, /*hit=*/false);
  const int link_tiles = written.leading_link_tasks * tiles;
  if (threadIdx.x == 0) {
    if (cut.expert >= 0) {
      experts.first_task[cut.expert] = written.link_tasks;
      WriteTasks(TaskOf(a.plan, cut.expert), experts.counts[cut.expert], cut.tiles, link_tiles,
                 joined, a.plan.link_tasks + written.link_tasks);
    }
    *a.plan.list = {
        .vram = {written.vram_tasks, written.leading_tasks * tiles, a.plan.vram_tasks},
        .link = {written.link_tasks + cut_tasks,
                 link_tiles + LeadingTasks(cut_tasks, joined) * cut.tiles, a.plan.link_tasks}};
    *a.plan.layer.num_offered = offers.Left(offers_taken);
    a.state->num_items = written.items;
    a.state->link_cost = written.link_cost;
    if (a.state->step.failed == 0) {
      a.mailbox.request->layer = a.layer;
      a.mailbox.request->rows = a.plan.rows;
      a.mailbox.request->num_items = written.items;
    }
  }
  __syncthreads();
  PlacePairs(a, experts);
}

}  // namespace moed::backend
