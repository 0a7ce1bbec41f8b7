#include "runtime/backend/cuda/expert_table.h"

#include "runtime/backend/cuda/plan_experts.cuh"

namespace moed::backend {
namespace {

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
__global__ void ApplyEdits(const ExpertEdit* edits, const int32_t* begins,
                           const ExpertTableLayer* layers, int num_layers) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= num_layers) return;
  const ExpertTableLayer layer = layers[index];
  for (int i = begins[index]; i < begins[index + 1]; ++i) {
    const ExpertEdit edit = edits[i];
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

__global__ void __launch_bounds__(kPlanThreads) PlanExperts(PlanExpertsArguments a) {
  extern __shared__ __align__(8) std::byte memory[];
  PlanLayer(a, memory);
}

}  // namespace

cudaError_t LaunchApplyEdits(const ExpertEdit* edits, const int32_t* begins,
                             const ExpertTableLayer* layers, int num_layers, cudaStream_t stream) {
  constexpr int kLayersPerBlock = 4;  // few, since each waits for memory alone
  const int blocks = (num_layers + kLayersPerBlock - 1) / kLayersPerBlock;
  ApplyEdits<<<blocks, kLayersPerBlock, 0, stream>>>(edits, begins, layers, num_layers);
  return cudaGetLastError();
}

cudaError_t LaunchPlanExperts(const PlanExpertsArguments& arguments, cudaStream_t stream) {
  PlanExperts<<<1, kPlanThreads, PlanSharedBytes(arguments.layer.num_experts), stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace moed::backend
