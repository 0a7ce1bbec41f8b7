#include "runtime/backend/cpu/device_experts.h"

#include <algorithm>
#include <cstring>

namespace moed::backend {

absl::StatusOr<std::unique_ptr<DeviceExperts>> CpuDeviceExperts::Create(
    const DeviceExpertsOptions& options, Backend& backend) {
  std::unique_ptr<CpuDeviceExperts> experts(new CpuDeviceExperts(options, backend));
  if (options.cold_path != ColdPath::kLink) {
    auto requests = ColdRequests::Create(options);
    if (!requests.ok()) return requests.status();
    experts->cold_requests_ = *std::move(requests);
  }
  return experts;
}

CpuDeviceExperts::CpuDeviceExperts(const DeviceExpertsOptions& options, Backend& backend)
    : options_(options), backend_(backend), layers_(options.experts_per_layer.size()) {
  const size_t pairs = static_cast<size_t>(options.max_tokens) * options.top_k;
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

absl::Status CpuDeviceExperts::BeginStep(int64_t tokens) {
  step_tokens_ = tokens;
  return cold_requests_ != nullptr ? cold_requests_->BeginStep() : absl::OkStatus();
}

absl::Status CpuDeviceExperts::EndStep() {
  if (cold_requests_ == nullptr) return absl::OkStatus();
  for (int layer = 0; layer < static_cast<int>(layers_.size()); ++layer) {
    if (layers_[layer].uses.empty()) continue;
    cold_requests_->workers().FollowUses(layer, StepIds(layer, step_tokens_), Uses(layer));
  }
  return cold_requests_->EndStep();
}

absl::Status CpuDeviceExperts::Apply(std::span<const ExpertEdit> edits) {
  for (const ExpertEdit& edit : edits) ApplyOne(edit);
  if (cold_requests_ != nullptr) cold_requests_->workers().Follow(edits);
  return absl::OkStatus();
}

ColdNeurons CpuDeviceExperts::cold_neurons() const {
  return cold_requests_ != nullptr ? cold_requests_->workers().neurons() : ColdNeurons();
}

ColdRates CpuDeviceExperts::cold_rates() const {
  return cold_requests_ != nullptr ? cold_requests_->rates(options_.format) : ColdRates();
}

void CpuDeviceExperts::ApplyOne(const ExpertEdit& edit) {
  Layer& layer = layers_[edit.layer];
  Entry& entry = layer.entries[std::max(edit.expert, 0)];
  switch (edit.kind) {
    case ExpertEditKind::kInsert:
      if (entry.slot < 0) entry = {.slot = edit.slot, .generation = edit.generation};
      entry.fill_allowed = 0;
      break;
    case ExpertEditKind::kEvict:
      if (entry.slot == edit.slot && entry.generation == edit.generation) entry.slot = -1;
      break;
    case ExpertEditKind::kOffer:
      layer.offered.push_back({edit.slot, edit.generation, edit.expert});
      break;
    case ExpertEditKind::kWithdraw:
      std::erase_if(layer.offered, [&](const OfferedSlot& o) { return o.slot == edit.slot; });
      break;
    case ExpertEditKind::kAllowFill:
      entry.fill_allowed = 1;
      break;
    case ExpertEditKind::kForbidFill:
      entry.fill_allowed = 0;
      break;
  }
}

Tensor CpuDeviceExperts::ids(int layer, int64_t tokens) const {
  return Tensor(const_cast<int32_t*>(layers_[layer].ids.data()), DType::kI32,
                {tokens, options_.top_k});
}

std::span<const int32_t> CpuDeviceExperts::StepIds(int layer, int64_t tokens) const {
  return {layers_[layer].ids.data(), static_cast<size_t>(tokens) * options_.top_k};
}

// Whether the last slot on the list holds nothing that the step reads.
bool CpuDeviceExperts::MayTakeOffer(const Layer& layer) const {
  if (layer.offered.empty()) return false;
  const OfferedSlot& last = layer.offered.back();
  return last.expert < 0 || rows_[last.expert].empty() ||
         layer.entries[last.expert].slot != last.slot;
}

const std::byte* CpuDeviceExperts::Place(Layer& layer, int expert,
                                         absl::FunctionRef<bool(const Entry&)> fits) {
  const size_t blob_bytes = options_.format.blob_bytes();
  Entry& entry = layer.entries[expert];
  ExpertUse& use = layer.uses[expert];
  const std::byte* blob = layer.experts + expert * blob_bytes;
  if (entry.slot >= 0) {
    use = {ExpertUseKind::kHit, entry.slot, entry.generation};
    blob = options_.slots + entry.slot * blob_bytes;
  } else if (entry.fill_allowed != 0 && MayTakeOffer(layer) && fits(entry)) {
    const OfferedSlot taken = layer.offered.back();
    layer.offered.pop_back();
    if (taken.expert >= 0 && layer.entries[taken.expert].slot == taken.slot) {
      layer.entries[taken.expert].slot = -1;
    }
    std::memcpy(options_.slots + taken.slot * blob_bytes, blob, blob_bytes);
    entry = {.slot = taken.slot, .generation = taken.generation};
    use = {ExpertUseKind::kFilled, taken.slot, taken.generation};
  } else {
    use = {ExpertUseKind::kCold};
    if (entry.fill_allowed != 0) ++entry.fill_allowed;
  }
  return blob;
}

// Of the chosen experts that have no slot.
int64_t CpuDeviceExperts::ColdCostOf(const Layer& layer) const {
  const int tiles = ColdTiles(options_.format.intermediate());
  int64_t cost = 0;
  for (size_t e = 0; e < rows_.size(); ++e) {
    if (rows_[e].empty() || layer.entries[e].slot >= 0) continue;
    cost += ColdCost(tiles, static_cast<int>(rows_[e].size()));
  }
  return cost;
}

int64_t CpuDeviceExperts::DivideWork(Layer& layer, const Tensor& weights) {
  const int tiles = ColdTiles(options_.format.intermediate());
  work_.clear();
  cold_experts_.clear();
  cut_neurons_ = 0;
  const int64_t total_cost = ColdCostOf(layer);
  const uint32_t link_share = cold_requests_ != nullptr ? cold_requests_->link_share() : 0;
  int64_t filling_cost = 0;
  for (size_t e = 0; e < rows_.size(); ++e) {
    if (rows_[e].empty()) continue;
    const auto expert = static_cast<int>(e);
    const int64_t cost = ColdCost(tiles, static_cast<int>(rows_[e].size()));
    const auto fits = [&](const Entry& entry) {
      return FillFits(link_share, total_cost, filling_cost, cost, entry.fill_allowed - 1);
    };
    const ExpertWork item = {.blob = Place(layer, expert, fits), .rows = rows_[e]};
    const ExpertUseKind kind = layer.uses[e].kind;
    if (kind == ExpertUseKind::kFilled) filling_cost += cost;
    if (kind == ExpertUseKind::kCold && cold_requests_ != nullptr) {
      cold_experts_.push_back(expert);
    } else {
      work_.push_back(item);
    }
  }
  if (cold_requests_ == nullptr) return total_cost;
  const int64_t budget = LinkBudget(link_share, total_cost, filling_cost);
  std::sort(cold_experts_.begin(), cold_experts_.end(), [&](int a, int b) {
    return ComesBefore(static_cast<int>(rows_[a].size()), a, static_cast<int>(rows_[b].size()), b);
  });
  int64_t before = 0;
  int64_t link_cost = filling_cost;
  for (const int expert : cold_experts_) {
    const int tokens = static_cast<int>(rows_[expert].size());
    const int over_link = LinkTiles(budget, before, tiles, tokens);
    link_cost += ColdCost(over_link, tokens);
    before += ColdCost(tiles, tokens);
    Divide(layer, expert, over_link, weights);
  }
  return link_cost;
}

void CpuDeviceExperts::Divide(Layer& layer, int expert, int link_tiles, const Tensor& weights) {
  const int64_t neurons = options_.format.intermediate();
  const int64_t over_link = std::min<int64_t>(int64_t{link_tiles} * kColdTileNeurons, neurons);
  const ExpertWork item = {.blob = layer.experts + expert * options_.format.blob_bytes(),
                           .rows = rows_[expert]};
  if (over_link == neurons) {
    work_.push_back(item);
    return;
  }
  if (over_link > 0) {
    cut_ = item;
    cut_neurons_ = over_link;
  }
  layer.uses[expert].cpu_neurons = static_cast<int32_t>(neurons - over_link);
  cold_requests_->AddItem(expert, over_link, neurons - over_link);
  for (const int32_t row : rows_[expert]) {
    cold_requests_->AddPair(row / options_.top_k, weights.As<float>()[row]);
  }
}

void CpuDeviceExperts::Route(int, const RouterStep& step) { backend_.NormRoute(step); }

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
  if (cold_requests_ != nullptr) cold_requests_->Begin(layer_index, tokens);
  const int64_t link_cost = DivideWork(layer, weights);
  if (cold_requests_ != nullptr) cold_requests_->Post(x);

  const ExpertFormat& format = options_.format;
  const Tensor output(output_.data(), DType::kF32, {tokens * options_.top_k, format.hidden()});
  // What the CPU computes comes by itself.
  if (cold_requests_ != nullptr) std::fill_n(output_.begin(), output.num_elements(), 0.0f);
  backend_.Experts(format, work_, options_.top_k, x, output);
  if (cut_neurons_ > 0) {
    // An expert's first neurons are an expert.
    const ExpertFormat first(format.kind(), format.hidden(), cut_neurons_, format.tile_escapes());
    backend_.Experts(first, {&cut_, 1}, options_.top_k, x, output);
  }
  backend_.CombineExperts(output, weights, residual);
  if (cold_requests_ != nullptr) cold_requests_->Collect(link_cost, residual);
}

}  // namespace moed::backend
