#include "runtime/backend/cpu/device_experts.h"

#include <algorithm>
#include <cstring>

namespace moed::backend {

CpuDeviceExperts::CpuDeviceExperts(const DeviceExpertsOptions& options, Backend& backend)
    : options_(options), backend_(backend), layers_(options.experts_per_layer.size()) {
  const size_t pairs = size_t(options.max_tokens) * options.top_k;
  output_.resize(pairs * options.format.hidden());
  const std::byte* experts = options.host_experts;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const int num_experts = options.experts_per_layer[i];
    layers_[i].entries.resize(num_experts);
    layers_[i].uses.resize(num_experts);
    layers_[i].ids.resize(pairs);
    layers_[i].experts = experts;
    experts += num_experts * options.format.blob_bytes();
  }
}

absl::Status CpuDeviceExperts::Apply(std::span<const ExpertEdit> edits) {
  for (const ExpertEdit& edit : edits) ApplyOne(edit);
  return absl::OkStatus();
}

void CpuDeviceExperts::ApplyOne(const ExpertEdit& edit) {
  Layer& layer = layers_[edit.layer];
  Entry* entry = edit.expert < 0 ? nullptr : &layer.entries[edit.expert];
  switch (edit.kind) {
    case ExpertEditKind::kInsert:
      if (entry->slot < 0) *entry = {.slot = edit.slot, .generation = edit.generation};
      entry->fill_allowed = false;
      break;
    case ExpertEditKind::kEvict:
      if (entry->slot == edit.slot && entry->generation == edit.generation) entry->slot = -1;
      break;
    case ExpertEditKind::kOffer:
      layer.offered.push_back({edit.slot, edit.generation});
      break;
    case ExpertEditKind::kWithdraw:
      std::erase_if(layer.offered, [&](const OfferedSlot& o) { return o.slot == edit.slot; });
      break;
    case ExpertEditKind::kAllowFill:
      entry->fill_allowed = true;
      break;
    case ExpertEditKind::kForbidFill:
      entry->fill_allowed = false;
      break;
  }
}

Tensor CpuDeviceExperts::ids(int layer, int64_t tokens) const {
  return Tensor(const_cast<int32_t*>(layers_[layer].ids.data()), DType::kI32,
                {tokens, options_.top_k});
}

std::span<const int32_t> CpuDeviceExperts::StepIds(int layer, int64_t tokens) const {
  return {layers_[layer].ids.data(), size_t(tokens) * options_.top_k};
}

const std::byte* CpuDeviceExperts::Place(Layer& layer, int expert) {
  const size_t blob_bytes = options_.format.blob_bytes();
  Entry& entry = layer.entries[expert];
  ExpertUse& use = layer.uses[expert];
  const std::byte* blob = layer.experts + expert * blob_bytes;
  if (entry.slot >= 0) {
    use = {ExpertUseKind::kHit, entry.slot, entry.generation};
    blob = options_.slots + entry.slot * blob_bytes;
  } else if (entry.fill_allowed && !layer.offered.empty()) {
    const OfferedSlot taken = layer.offered.back();
    layer.offered.pop_back();
    std::memcpy(options_.slots + taken.slot * blob_bytes, blob, blob_bytes);
    entry = {.slot = taken.slot, .generation = taken.generation};
    use = {ExpertUseKind::kFilled, taken.slot, taken.generation};
  } else {
    use = {ExpertUseKind::kCold};
  }
  return blob;
}

void CpuDeviceExperts::Run(int layer_index, const Tensor& weights, const Tensor& x,
                           const Tensor& residual) {
  Layer& layer = layers_[layer_index];
  const int64_t tokens = x.dim(0);
  rows_.resize(layer.entries.size());
  for (std::vector<int32_t>& rows : rows_) rows.clear();
  for (int64_t row = 0; row < tokens * options_.top_k; ++row) {
    rows_[layer.ids[row]].push_back(static_cast<int32_t>(row));
  }
  std::fill(layer.uses.begin(), layer.uses.end(), ExpertUse{});
  std::vector<ExpertWork> work;
  for (size_t expert = 0; expert < rows_.size(); ++expert) {
    if (rows_[expert].empty()) continue;
    work.push_back({.blob = Place(layer, static_cast<int>(expert)), .rows = rows_[expert]});
  }
  const Tensor output(output_.data(), DType::kF32,
                      {tokens * options_.top_k, options_.format.hidden()});
  backend_.Experts(options_.format, work, options_.top_k, x, output);
  backend_.CombineExperts(output, weights, residual);
}

}  // namespace moed::backend
