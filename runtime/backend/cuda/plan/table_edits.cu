#include "runtime/backend/cuda/plan/table_edits.h"

#include <algorithm>
#include <numeric>

#include "runtime/backend/cuda/device/cuda_status.h"

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
  layer.offered[count] = {edit.slot, edit.generation, edit.expert};
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

// Into `sorted`, those of a layer in their order; the edits of layer l are then
// [begins[l], begins[l + 1]).
void SortByLayer(std::span<const ExpertEdit> edits, std::span<int32_t> begins, ExpertEdit* sorted) {
  std::fill(begins.begin(), begins.end(), 0);
  for (const ExpertEdit& edit : edits) ++begins[edit.layer + 1];
  std::partial_sum(begins.begin(), begins.end(), begins.begin());
  for (const ExpertEdit& edit : edits) sorted[begins[edit.layer]++] = edit;
  // Each now begins where the next did.
  std::copy_backward(begins.begin(), begins.end() - 1, begins.end());
  begins[0] = 0;
}

}  // namespace

absl::Status TableEdits::Apply(std::span<const ExpertEdit> edits, const ExpertTableLayer* layers,
                               size_t num_layers, cudaStream_t stream) {
  constexpr int kLayersPerBlock = 4;  // few, since each waits for memory alone
  if (edits.empty()) return absl::OkStatus();
  static_assert(alignof(ExpertEdit) == alignof(int32_t));
  const size_t sorted_at = (num_layers + 1) * sizeof(int32_t);
  const absl::StatusOr<std::byte*> staged = upload_.Stage(sorted_at + edits.size_bytes());
  if (!staged.ok()) return staged.status();
  SortByLayer(edits, {reinterpret_cast<int32_t*>(*staged), num_layers + 1},
              reinterpret_cast<ExpertEdit*>(*staged + sorted_at));
  if (absl::Status status = upload_.Copy(stream); !status.ok()) return status;
  const std::byte* const copied = upload_.target();
  const int blocks = (static_cast<int>(num_layers) + kLayersPerBlock - 1) / kLayersPerBlock;
  ApplyEdits<<<blocks, kLayersPerBlock, 0, stream>>>(
      reinterpret_cast<const ExpertEdit*>(copied + sorted_at),
      reinterpret_cast<const int32_t*>(copied), layers, static_cast<int>(num_layers));
  return CudaStatus(cudaGetLastError(), "editing the table of experts");
}

}  // namespace moed::backend
