#include "runtime/model/residency_link.h"

#include <utility>

namespace moed::model {
namespace {

backend::ExpertEditKind KindOf(cache::TableEditKind kind) {
  switch (kind) {
    case cache::TableEditKind::kInsert:
      return backend::ExpertEditKind::kInsert;
    case cache::TableEditKind::kEvict:
      return backend::ExpertEditKind::kEvict;
    case cache::TableEditKind::kOffer:
      return backend::ExpertEditKind::kOffer;
    case cache::TableEditKind::kWithdraw:
      return backend::ExpertEditKind::kWithdraw;
    case cache::TableEditKind::kAllowFill:
      return backend::ExpertEditKind::kAllowFill;
    case cache::TableEditKind::kForbidFill:
      return backend::ExpertEditKind::kForbidFill;
  }
  return backend::ExpertEditKind::kForbidFill;
}

cache::DeviceUseKind KindOf(backend::ExpertUseKind kind) {
  switch (kind) {
    case backend::ExpertUseKind::kHit:
      return cache::DeviceUseKind::kHit;
    case backend::ExpertUseKind::kFilled:
      return cache::DeviceUseKind::kFilled;
    case backend::ExpertUseKind::kUnused:
    case backend::ExpertUseKind::kCold:
      return cache::DeviceUseKind::kCold;
  }
  return cache::DeviceUseKind::kCold;
}

}  // namespace

absl::Status ResidencyLink::BeginStep() {
  if (status_.ok() && cache_.device()->host_fills_wait()) status_ = Publish();
  step_table_number_ = update_.number;
  return status_;
}

absl::Status ResidencyLink::Publish() {
  if (!cache_.device()->Publish(&update_)) return absl::OkStatus();
  edits_.clear();
  for (const cache::TableEdit& edit : update_.edits) {
    edits_.push_back({.kind = KindOf(edit.kind),
                      .layer = edit.layer,
                      .expert = edit.expert,
                      .slot = edit.slot,
                      .generation = edit.generation});
  }
  return device_.Apply(edits_);
}

void ResidencyLink::AddLayer(int layer, const ExpertGroups& groups,
                             std::span<const cache::ExpertLoad> loads,
                             const backend::ExpertFormat& format, LayerTraffic* traffic) {
  traffic->Clear();
  int64_t cpu_neurons = 0;
  const std::span<const backend::ExpertUse> uses = device_.Uses(layer);
  for (size_t i = 0; i < loads.size(); ++i) {
    const int expert = groups.experts()[i];
    const backend::ExpertUse& use = uses[expert];
    trace_.uses.push_back({.kind = KindOf(use.kind),
                           .layer = layer,
                           .expert = expert,
                           .tokens = loads[i].tokens,
                           .weight = loads[i].weight,
                           .slot = use.slot,
                           .generation = use.generation});
    const bool hit = use.kind == backend::ExpertUseKind::kHit;
    (hit ? traffic->hits : traffic->misses).push_back(expert);
    cpu_neurons += use.cpu_neurons;
  }
  const auto expert_bytes = static_cast<int64_t>(format.blob_bytes());
  const int64_t cpu_bytes = cpu_neurons * expert_bytes / format.intermediate();
  const auto cold_bytes = static_cast<int64_t>(traffic->misses.size()) * expert_bytes;
  cache_.CountBytes(layer, cache::BytePath::kCpu, cpu_bytes);
  cache_.CountBytes(layer, cache::BytePath::kLink, cold_bytes - cpu_bytes);
}

void ResidencyLink::EndStep() {
  trace_.table_number = step_table_number_;
  follows_ = false;
}

absl::Status ResidencyLink::Follow() {
  if (std::exchange(follows_, true)) return status_;
  status_.Update(cache_.device()->Replay(trace_));
  trace_.uses.clear();
  if (status_.ok()) status_ = Publish();
  return status_;
}

}  // namespace moed::model
