#include "cache/device_residency.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace moed::cache {
namespace {

// What is known of an expert between two updates.
constexpr uint8_t kAllowed = 1;  // in LayerPlan::allowed
constexpr uint8_t kWanted = 2;   // within Allow

absl::Status Contradiction(const DeviceUse& use, absl::string_view what) {
  return absl::InternalError(absl::StrCat("the device's trace contradicts the host's table: layer ",
                                          use.layer, " expert ", use.expert, " ", what, " slot ",
                                          use.slot, " generation ", use.generation));
}

}  // namespace

DeviceResidency::DeviceResidency(CacheState* state, AdmissionPlanner* planner)
    : state_(*state),
      planner_(*planner),
      layers_(state->index.num_layers()),
      formers_(state->slots.max_slots()),
      flags_(state->index.total_experts(), 0) {}

int32_t DeviceResidency::offered_slots() const {
  size_t offered = 0;
  for (const LayerPlan& layer : layers_) offered += layer.offered.size();
  return static_cast<int32_t>(offered);
}

absl::Status DeviceResidency::Replay(const DeviceTrace& trace) {
  if (trace.table_number < number_in_use_ || trace.table_number > number_) {
    return absl::InternalError(absl::StrCat("the device's trace names table ", trace.table_number,
                                            "; expected ", number_in_use_, " to ", number_));
  }
  number_in_use_ = trace.table_number;
  ++num_replayed_;
  state_.BeginStep();
  const std::span<const DeviceUse> uses = trace.uses;
  for (size_t begin = 0, end = 0; begin < uses.size(); begin = end) {
    while (end < uses.size() && uses[end].layer == uses[begin].layer) ++end;
    absl::Status status = ReplayLayer(uses.subspan(begin, end - begin), trace.table_number);
    if (!status.ok()) return status;
  }
  ReclaimUpTo(trace.table_number);
  return absl::OkStatus();
}

absl::Status DeviceResidency::ReplayLayer(std::span<const DeviceUse> uses, uint64_t table_number) {
  const int layer = uses.front().layer;
  if (layer < 0 || layer >= state_.index.num_layers()) {
    return Contradiction(uses.front(), "is unknown, in");
  }
  LayerPlan& plan = layers_[layer];
  loads_.resize(uses.size());
  warm_.resize(uses.size());
  plan.missed.resize(plan.missed.size() + uses.size());
  int* const warm = warm_.data();
  int* const cold = plan.missed.data() + plan.missed.size() - uses.size();
  size_t num_warm = 0;
  for (size_t i = 0; i < uses.size(); ++i) {
    const DeviceUse& use = uses[i];
    if (!state_.index.Contains({layer, use.expert})) return Contradiction(use, "is unknown, in");
    loads_[i] = {use.expert, use.tokens, use.weight};
    // Without a branch on what no predictor can know.
    warm[num_warm] = static_cast<int>(i);
    cold[i - num_warm] = use.expert;
    num_warm += use.kind != DeviceUseKind::kCold ? 1 : 0;
  }
  plan.missed.resize(plan.missed.size() - num_warm);
  state_.Observe(layer, loads_);
  int64_t hits = 0;
  for (size_t i = 0; i < num_warm; ++i) {
    const DeviceUse& use = uses[warm[i]];
    absl::Status status;
    if (use.kind == DeviceUseKind::kFilled) {
      status = ReplayFill(use);
    } else if (use.kind != DeviceUseKind::kHit || !MayRead(use, table_number)) {
      status = Contradiction(use, "was read from");
    }
    if (!status.ok()) return status;
    hits += use.kind == DeviceUseKind::kHit ? 1 : 0;
  }
  state_.counters[layer].hits_total += hits;
  state_.counters[layer].misses_total += static_cast<int64_t>(uses.size()) - hits;
  return absl::OkStatus();
}

// Resident, or in a slot on offer, or evicted by an update that the step had not seen.
bool DeviceResidency::MayRead(const DeviceUse& use, uint64_t table_number) const {
  if (use.slot < 0 || use.slot >= state_.slots.max_slots()) return false;
  const Slot& slot = state_.slots.slot(use.slot);
  if (slot.key != ExpertKey{use.layer, use.expert} || slot.generation != use.generation) {
    return MayReadFormer(use, table_number);
  }
  if (slot.state == SlotState::kResident) return true;
  return std::any_of(leaving_.begin(), leaving_.end(), [&](const Leaving& leaving) {
    return leaving.slot == use.slot && leaving.number > table_number;
  });
}

bool DeviceResidency::MayReadFormer(const DeviceUse& use, uint64_t table_number) const {
  const Slot& slot = state_.slots.slot(use.slot);
  const Former& former = formers_[use.slot];
  return slot.state == SlotState::kOffered && slot.key.layer == use.layer &&
         former.expert == use.expert && former.generation == use.generation &&
         (former.evicted_by == 0 || former.evicted_by > table_number);
}

absl::Status DeviceResidency::ReplayFill(const DeviceUse& use) {
  LayerPlan& layer = layers_[use.layer];
  const ExpertKey key{use.layer, use.expert};
  const bool known = use.slot >= 0 && use.slot < state_.slots.max_slots();
  const Slot slot = known ? state_.slots.slot(use.slot) : Slot{};
  if (slot.state != SlotState::kOffered || slot.generation != use.generation ||
      slot.key.layer != use.layer) {
    return Contradiction(use, "was written into");
  }
  // A withdrawal that came too late is void: the slot is taken.
  if (std::erase(layer.offered, use.slot) == 0) {
    std::erase_if(leaving_, [&](const Leaving& leaving) { return leaving.slot == use.slot; });
  }
  ++layer.filled;
  uint8_t& flag = Flag(use.layer, use.expert);
  if ((flag & kAllowed) != 0) std::erase(layer.allowed, use.expert);
  flag &= static_cast<uint8_t>(~kAllowed);
  // If the host filled the expert meanwhile, the device has ignored or will ignore that insert.
  if (const int32_t by_host = state_.slots.SlotOf(key); by_host >= 0) {
    state_.slots.Supersede(by_host);
  }
  state_.slots.FilledByDevice(use.slot, key);
  LayerStats& counters = state_.counters[use.layer];
  ++counters.admissions_total;
  const Former former = std::exchange(formers_[use.slot], {});
  if (former.expert >= 0 && former.evicted_by == 0) ++counters.evictions_total;
  return absl::OkStatus();
}

bool DeviceResidency::Publish(TableUpdate* update) {
  InsertHostFills();
  CutToBudget();
  const bool over_budget = state_.slots.in_service() > state_.slots.budget();
  for (int layer = 0; layer < state_.index.num_layers() && !over_budget; ++layer) {
    if (!layers_[layer].missed.empty() || !layers_[layer].allowed.empty()) PlanLayer(layer);
  }
  if (!over_budget) num_replayed_ = 0;
  if (edits_.empty()) return false;
  update->number = ++number_;
  // The memory of the last update serves the next.
  update->edits.swap(edits_);
  edits_.clear();
  return true;
}

void DeviceResidency::InsertHostFills() {
  for (const HostFill& fill : inserts_) {
    const Slot& slot = state_.slots.slot(fill.slot);
    if (slot.state != SlotState::kResident || slot.generation != fill.generation || slot.scratch) {
      continue;
    }
    EvictFormersOf(slot.key);
    Edit(TableEditKind::kInsert, slot.key.layer, slot.key.expert, fill.slot);
    std::erase(layers_[slot.key.layer].allowed, slot.key.expert);
    Flag(slot.key.layer, slot.key.expert) &= static_cast<uint8_t>(~kAllowed);
  }
  inserts_.clear();
}

// After the budget shrank: offered slots go first, then the least worthy residents.
void DeviceResidency::CutToBudget() {
  int32_t excess = state_.slots.total_resident() + offered_slots() - state_.slots.budget();
  for (int layer = 0; layer < state_.index.num_layers(); ++layer) {
    for (; excess > 0 && !layers_[layer].offered.empty(); --excess) {
      EvictFormer(Withdraw(layer));
    }
  }
  for (int32_t slot : planner_.Surplus(state_.resident_limit())) EvictFor(-1, slot);
}

void DeviceResidency::PlanLayer(int layer) {
  LayerPlan& plan = layers_[layer];
  uint8_t* const flags = flags_.data() + state_.index.FirstOf(layer);
  const std::span<const int32_t> slots = state_.slots.SlotsOfLayer(layer);
  if (num_replayed_ > 1) {
    std::sort(plan.missed.begin(), plan.missed.end());
    plan.missed.erase(std::unique(plan.missed.begin(), plan.missed.end()), plan.missed.end());
  }
  // The host may have filled some meanwhile.
  candidates_.resize(plan.missed.size() + plan.allowed.size());
  int* const candidates = candidates_.data();
  size_t num_candidates = 0;
  for (int expert : plan.missed) {
    candidates[num_candidates] = expert;
    num_candidates += slots[expert] < 0 && (flags[expert] & kAllowed) == 0 ? 1 : 0;
  }
  const auto num_missed = static_cast<int64_t>(num_candidates);
  for (int expert : plan.allowed) {
    candidates[num_candidates] = expert;
    num_candidates += slots[expert] < 0 ? 1 : 0;
  }
  candidates_.resize(num_candidates);
  plan.missed.clear();
  AdaptMostOffered(&plan);
  WithdrawUsed(layer);
  const int32_t empty = static_cast<int32_t>(plan.offered.size()) + plan.coming;
  const Admission& admission =
      planner_.Decide(layer, candidates_, empty + state_.slots.free_slots(), Exchange::kByDevice);
  wanted_.clear();
  int64_t refused = num_missed;
  for (int32_t index : admission.admitted) {
    wanted_.push_back(candidates_[index]);
    refused -= index < num_missed ? 1 : 0;
  }
  state_.counters[layer].refused_admissions_total += refused;
  Allow(layer, wanted_);
  // The coldest. Other slots may be offered when these are filled.
  const auto room = static_cast<size_t>(std::max(plan.most_offered - empty, 0));
  const std::span<const int32_t> victims = admission.victims;
  OfferVictims(layer, victims.first(std::min(room, victims.size())));
  OfferFreeSlots(layer);
}

// Twice as many once a step filled all that it was offered, half as many once it filled few.
void DeviceResidency::AdaptMostOffered(LayerPlan* plan) {
  const int32_t filled = std::exchange(plan->filled, 0);
  if (filled > 0 && plan->offered.empty()) {
    plan->most_offered *= 2;
  } else if (2 * filled < plan->most_offered) {
    plan->most_offered = std::max(plan->most_offered / 2, 1);
  }
}

void DeviceResidency::Allow(int layer, const std::vector<int>& wanted) {
  std::vector<int>& allowed = layers_[layer].allowed;
  uint8_t* const flags = flags_.data() + state_.index.FirstOf(layer);
  for (int expert : wanted) flags[expert] |= kWanted;
  for (int expert : allowed) {
    if ((flags[expert] & kWanted) != 0) continue;
    Edit(TableEditKind::kForbidFill, layer, expert, -1);
    flags[expert] = 0;
  }
  for (int expert : wanted) {
    if ((flags[expert] & kAllowed) == 0) Edit(TableEditKind::kAllowFill, layer, expert, -1);
    flags[expert] = kAllowed;
  }
  allowed = wanted;
}

uint8_t& DeviceResidency::Flag(int layer, int expert) {
  return flags_[state_.index.Of({layer, expert})];
}

void DeviceResidency::Edit(TableEditKind kind, int layer, int expert, int32_t slot) {
  const uint32_t generation = slot < 0 ? 0 : state_.slots.slot(slot).generation;
  edits_.push_back({kind, layer, expert, slot, generation});
}

}  // namespace moed::cache
