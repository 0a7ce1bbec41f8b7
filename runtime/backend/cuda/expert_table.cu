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

// What an expert's tokens need to find its tasks.
struct TaskPlace {
  ExpertTask* first;
  int next_token;
};

// Both spans' task counts in one word, so that one sum over the block places both.
constexpr int kLinkShift = 16;

// Shared memory: a TaskPlace and a count for each of the layer's experts.
__global__ void __launch_bounds__(kThreads) PlanExperts(PlanExpertsArguments a) {
  extern __shared__ __align__(8) std::byte memory[];
  __shared__ int offers_taken;
  const int experts = a.layer.num_experts;
  auto* places = reinterpret_cast<TaskPlace*>(memory);
  auto* counts = reinterpret_cast<int*>(places + experts);
  if (threadIdx.x == 0) offers_taken = 0;
  for (int e = threadIdx.x; e < experts; e += kThreads) counts[e] = 0;
  __syncthreads();
  const int pairs = a.rows * a.top_k;
  for (int i = threadIdx.x; i < pairs; i += kThreads) {
    if (a.positions[i / a.top_k] >= 0) atomicAdd(&counts[a.ids[i]], 1);
  }
  __syncthreads();

  int written = 0;  // tasks of both spans
  for (int base = 0; base < experts; base += kThreads) {
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
    if (tokens == 0) continue;
    const int index = hit ? before & ((1 << kLinkShift) - 1) : before >> kLinkShift;
    ExpertTask* const first = (hit ? a.vram_tasks : a.link_tasks) + index;
    places[e] = {first, 0};
    WriteTasks(task, tokens, a.tiles_per_expert, index * a.tiles_per_expert, first);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < pairs; i += kThreads) {
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
    *a.list = {.vram = {vram, vram * a.tiles_per_expert, a.vram_tasks},
               .link = {link, link * a.tiles_per_expert, a.link_tasks}};
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
  const size_t shared_bytes = (sizeof(TaskPlace) + sizeof(int)) * arguments.layer.num_experts;
  PlanExperts<<<1, kThreads, shared_bytes, stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace moed::backend
