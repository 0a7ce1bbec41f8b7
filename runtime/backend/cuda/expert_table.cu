#include "runtime/backend/cuda/expert_table.h"

#include "runtime/backend/cuda/expert_place.cuh"

namespace moed::backend {
namespace {

constexpr int kThreads = kPlanThreads;

__device__ void Insert(const ExpertEdit& edit, ExpertTableEntry* entry) {
  if (entry->slot < 0) {
    entry->slot = edit.slot;
    entry->generation = edit.generation;
  }
  entry->fill_allowed = 0;
}

__device__ void Withdraw(int32_t slot, const ExpertTableLayer& layer) {
  const int count = *layer.num_offered;
  for (int i = 0; i < count; ++i) {
    if (layer.offered[i].slot != slot) continue;
    layer.offered[i] = layer.offered[count - 1];
    *layer.num_offered = count - 1;
    return;
  }
}

// An offer beyond the room for them is dropped: the slot stays empty, and a withdrawal finds none.
__device__ void Offer(const ExpertEdit& edit, const ExpertTableLayer& layer) {
  const int count = *layer.num_offered;
  if (count == layer.max_offered) return;
  layer.offered[count] = {edit.slot, edit.generation};
  *layer.num_offered = count + 1;
}

// A thread to a layer, since only the order within a layer matters.
__global__ void ApplyEdits(const ExpertEdit* edits, int count, const ExpertTableLayer* layers,
                           int num_layers) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= num_layers) return;
  const ExpertTableLayer layer = layers[index];
  for (int i = 0; i < count; ++i) {
    const ExpertEdit edit = edits[i];
    if (edit.layer != index) continue;
    ExpertTableEntry* entry = layer.entries + max(edit.expert, 0);
    switch (edit.kind) {
      case ExpertEditKind::kInsert:
        Insert(edit, entry);
        break;
      case ExpertEditKind::kEvict:
        if (entry->slot == edit.slot && entry->generation == edit.generation) entry->slot = -1;
        break;
      case ExpertEditKind::kOffer:
        Offer(edit, layer);
        break;
      case ExpertEditKind::kWithdraw:
        Withdraw(edit.slot, layer);
        break;
      case ExpertEditKind::kAllowFill:
        entry->fill_allowed = 1;
        break;
      case ExpertEditKind::kForbidFill:
        entry->fill_allowed = 0;
        break;
    }
  }
}

// Shared memory: counts, first tasks and next places of the layer's experts.
__global__ void __launch_bounds__(kThreads) PlanExperts(PlanExpertsArguments a) {
  extern __shared__ int shared[];
  __shared__ int offers_taken;
  const int experts = a.layer.num_experts;
  int* counts = shared;
  int* first_task = counts + experts;
  int* next_place = first_task + experts;
  if (threadIdx.x == 0) offers_taken = 0;
  for (int e = threadIdx.x; e < experts; e += kThreads) counts[e] = next_place[e] = 0;
  __syncthreads();
  const int pairs = a.rows * a.top_k;
  for (int i = threadIdx.x; i < pairs; i += kThreads) {
    if (a.positions[i / a.top_k] >= 0) atomicAdd(&counts[a.ids[i]], 1);
  }
  __syncthreads();

  int num_tasks = 0;
  for (int base = 0; base < experts; base += kThreads) {
    const int e = base + threadIdx.x;
    const int tokens = e < experts ? counts[e] : 0;
    const int tasks = (tokens + kTaskTokens - 1) / kTaskTokens;
    int total;
    const int first = num_tasks + ExclusiveSum(tasks, &total);
    num_tasks += total;
    if (e >= experts) continue;
    first_task[e] = first;
    if (tokens == 0) {
      a.layer.uses[e] = ExpertUse{};
      continue;
    }
    ExpertTask task = Place(a, e, &offers_taken);
    task.num_tiles = a.tiles_per_expert;
    for (int i = 0; i < tasks; ++i) {
      task.num_tokens = min(kTaskTokens, tokens - i * kTaskTokens);
      task.first_tile = (first + i) * a.tiles_per_expert;
      a.tasks[first + i] = task;
      task.fill = nullptr;  // one of an expert's tasks fills its slot
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < pairs; i += kThreads) {
    const int row = i / a.top_k;
    if (a.positions[row] < 0) continue;
    const int expert = a.ids[i];
    const int place = atomicAdd(&next_place[expert], 1);
    ExpertTask& task = a.tasks[first_task[expert] + place / kTaskTokens];
    task.token[place % kTaskTokens] = row;
    task.target[place % kTaskTokens] = row;
    task.weight[place % kTaskTokens] = a.weights[i];
  }
  if (threadIdx.x == 0) {
    *a.list = {num_tasks, num_tasks * a.tiles_per_expert, a.tasks};
    *a.layer.num_offered -= min(offers_taken, *a.layer.num_offered);
  }
}

}  // namespace

cudaError_t LaunchApplyEdits(const ExpertEdit* edits, int count, const ExpertTableLayer* layers,
                             int num_layers, cudaStream_t stream) {
  ApplyEdits<<<(num_layers + 31) / 32, 32, 0, stream>>>(edits, count, layers, num_layers);
  return cudaGetLastError();
}

cudaError_t LaunchPlanExperts(const PlanExpertsArguments& arguments, cudaStream_t stream) {
  const size_t shared_bytes = 3 * sizeof(int) * arguments.layer.num_experts;
  PlanExperts<<<1, kThreads, shared_bytes, stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace moed::backend
