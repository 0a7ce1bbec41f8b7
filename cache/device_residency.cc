#include "cache/device_residency.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace moed::cache {
namespace {

// What is known of an expert between two updates.
constexpr uint8_t kMissed = 1;   // in LayerPlan::missed
constexpr uint8_t kAllowed = 2;  // in LayerPlan::allowed
constexpr uint8_t kWanted = 4;   // within Allow

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
  for (const DeviceUse& use : trace.uses) {
    if (!state_.index.Contains({use.layer, use.expert}))
      return Contradiction(use, "is unknown, in");
  }
  number_in_use_ = trace.table_number;
  Observe(trace.uses);
  for (const DeviceUse& use : trace.uses) {
    if (absl::Status status = ReplayUse(use, trace.table_number); !status.ok()) return status;
  }
  ReclaimUpTo(trace.table_number);
  return absl::OkStatus();
}

void DeviceResidency::Observe(const std::vector<DeviceUse>& uses) {
  state_.BeginStep();
  for (size_t begin = 0, end = 0; begin < uses.size(); begin = end) {
    const int layer = uses[begin].layer;
    loads_.clear();
    for (; end < uses.size() && uses[end].layer == layer; ++end) {
      loads_.push_back({uses[end].expert, uses[end].tokens, uses[end].weight});
    }
    state_.Observe(layer, loads_);
  }
}

absl::Status DeviceResidency::ReplayUse(const DeviceUse& use, uint64_t table_number) {
  LayerStats& counters = state_.counters[use.layer];
  uint8_t& flag = Flag(use.layer, use.expert);
  switch (use.kind) {
    case DeviceUseKind::kHit:
      ++counters.hits_total;
      return MayRead(use, table_number) ? absl::OkStatus() : Contradiction(use, "was read from");
    case DeviceUseKind::kFilled:
      ++counters.misses_total;
      return ReplayFill(use);
    case DeviceUseKind::kCold:
      ++counters.misses_total;
      if ((flag & kMissed) == 0) layers_[use.layer].missed.push_back(use.expert);
      flag |= kMissed;
      return absl::OkStatus();
  }
  return Contradiction(use, "has an unknown kind of use, in");
}

// Resident, or evicted by an update that the step had not seen.
bool DeviceResidency::MayRead(const DeviceUse& use, uint64_t table_number) const {
  if (use.slot < 0 || use.slot >= state_.slots.max_slots()) return false;
  const Slot& slot = state_.slots.slot(use.slot);
  if (slot.key != ExpertKey{use.layer, use.expert} || slot.generation != use.generation) {
    return false;
  }
  if (slot.state == SlotState::kResident) return true;
  return std::any_of(leaving_.begin(), leaving_.end(), [&](const Leaving& leaving) {
    return leaving.slot == use.slot && leaving.number > table_number;
  });
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
  std::erase(layer.offered, use.slot);
  ++layer.filled;
  uint8_t& flag = Flag(use.layer, use.expert);
  if ((flag & kAllowed) != 0) std::erase(layer.allowed, use.expert);
  flag &= static_cast<uint8_t>(~kAllowed);
  // A withdrawal that came too late is void: the slot is taken.
  std::erase_if(leaving_, [&](const Leaving& leaving) { return leaving.slot == use.slot; });
  // If the host filled the expert meanwhile, the device has ignored or will ignore that insert.
  if (const int32_t by_host = state_.slots.SlotOf(key); by_host >= 0) {
    state_.slots.Supersede(by_host);
  }
  state_.slots.FilledByDevice(use.slot, key);
  ++state_.counters[use.layer].admissions_total;
  return absl::OkStatus();
}

void DeviceResidency::ReclaimUpTo(uint64_t table_number) {
  while (!leaving_.empty() && leaving_.front().number <= table_number) {
    const Leaving leaving = leaving_.front();
    leaving_.pop_front();
    if (state_.slots.slot(leaving.slot).state == SlotState::kOffered) {
      state_.slots.Retire(leaving.slot);
    }
    state_.slots.Reclaim(leaving.slot);
    if (leaving.layer < 0) continue;
    --layers_[leaving.layer].coming;
    OfferFreeSlots(leaving.layer);  // at once, before another layer takes it
  }
}

bool DeviceResidency::Publish(TableUpdate* update) {
  InsertHostFills();
  CutToBudget();
  const bool over_budget = state_.slots.in_service() > state_.slots.budget();
  for (int layer = 0; layer < state_.index.num_layers() && !over_budget; ++layer) {
    if (!layers_[layer].missed.empty() || !layers_[layer].allowed.empty()) PlanLayer(layer);
  }
  if (edits_.empty()) return false;
  update->number = ++number_;
  update->edits = std::exchange(edits_, {});
  return true;
}

void DeviceResidency::InsertHostFills() {
  for (const HostFill& fill : inserts_) {
    const Slot& slot = state_.slots.slot(fill.slot);
    if (slot.state != SlotState::kResident || slot.generation != fill.generation || slot.scratch) {
      continue;
    }
    Edit(TableEditKind::kInsert, slot.key.layer, slot.key.expert, fill.slot);
    std::erase(layers_[slot.key.layer].allowed, slot.key.expert);
    Flag(slot.key.layer, slot.key.expert) &= static_cast<uint8_t>(~kAllowed);
  }
  inserts_.clear();
}

// After the budget shrank: empty slots go first, then the least worthy residents.
void DeviceResidency::CutToBudget() {
  int32_t excess = state_.slots.total_resident() + offered_slots() - state_.slots.budget();
  for (int layer = 0; layer < state_.index.num_layers(); ++layer) {
    for (; excess > 0 && !layers_[layer].offered.empty(); --excess) Withdraw(layer);
  }
  for (int32_t slot : planner_.Surplus(state_.resident_limit())) EvictFor(-1, slot);
}

void DeviceResidency::PlanLayer(int layer) {
  LayerPlan& plan = layers_[layer];
  std::vector<int> candidates = std::exchange(plan.missed, {});
  for (int expert : plan.allowed) {
    if ((Flag(layer, expert) & kMissed) == 0) candidates.push_back(expert);
  }
  for (int expert : candidates) Flag(layer, expert) &= static_cast<uint8_t>(~kMissed);
  std::erase_if(candidates, [&](int expert) { return state_.slots.SlotOf({layer, expert}) >= 0; });
  AdaptMostEmpty(&plan);
  const int32_t empty = static_cast<int32_t>(plan.offered.size()) + plan.coming;
  const Admission admission = planner_.Decide(layer, candidates, empty + state_.slots.free_slots());
  std::vector<int> wanted;
  for (int32_t index : admission.admitted) wanted.push_back(candidates[index]);
  Allow(layer, wanted);
  // Coldest first. What is not evicted now may be when the empty slots are filled.
  const auto room = static_cast<size_t>(std::max(plan.most_empty - empty, 0));
  for (size_t i = 0; i < std::min(room, admission.victims.size()); ++i) {
    EvictFor(layer, admission.victims[i]);
  }
  OfferFreeSlots(layer);
}

// Twice as many once a step filled all that it was offered, half as many once it filled few.
void DeviceResidency::AdaptMostEmpty(LayerPlan* plan) {
  const int32_t filled = std::exchange(plan->filled, 0);
  if (filled > 0 && plan->offered.empty()) {
    plan->most_empty *= 2;
  } else if (2 * filled < plan->most_empty) {
    plan->most_empty = std::max(plan->most_empty / 2, 1);
  }
}

void DeviceResidency::Allow(int layer, const std::vector<int>& wanted) {
  std::vector<int>& allowed = layers_[layer].allowed;
  for (int expert : wanted) Flag(layer, expert) |= kWanted;
  for (int expert : allowed) {
    if ((Flag(layer, expert) & kWanted) != 0) continue;
    Edit(TableEditKind::kForbidFill, layer, expert, -1);
    Flag(layer, expert) = 0;
  }
  for (int expert : wanted) {
    if ((Flag(layer, expert) & kAllowed) == 0) Edit(TableEditKind::kAllowFill, layer, expert, -1);
    Flag(layer, expert) = kAllowed;
  }
  allowed = wanted;
}

// As many empty slots, on offer or on their way, as experts are wanted.
void DeviceResidency::OfferFreeSlots(int layer) {
  LayerPlan& plan = layers_[layer];
  const int32_t wanted = static_cast<int32_t>(plan.allowed.size()) - plan.coming;
  while (static_cast<int32_t>(plan.offered.size()) > std::max(wanted, 0)) Withdraw(layer);
  while (static_cast<int32_t>(plan.offered.size()) < wanted && state_.slots.free_slots() > 0) {
    plan.offered.push_back(state_.slots.Offer(layer));
    Edit(TableEditKind::kOffer, layer, -1, plan.offered.back());
  }
}

uint8_t& DeviceResidency::Flag(int layer, int expert) {
  return flags_[state_.index.Of({layer, expert})];
}

// `layer`: in whose favour, or -1.
void DeviceResidency::EvictFor(int layer, int32_t slot) {
  const Slot& victim = state_.slots.slot(slot);
  Edit(TableEditKind::kEvict, victim.key.layer, victim.key.expert, slot);
  ++state_.counters[victim.key.layer].evictions_total;
  leaving_.push_back({slot, victim.generation, number_ + 1, layer});
  if (layer >= 0) ++layers_[layer].coming;
  state_.slots.Retire(slot);
}

// The device may have filled the slot already; then the trace will say so and the slot stays.
void DeviceResidency::Withdraw(int layer) {
  const int32_t slot = layers_[layer].offered.back();
  layers_[layer].offered.pop_back();
  Edit(TableEditKind::kWithdraw, layer, -1, slot);
  leaving_.push_back({slot, state_.slots.slot(slot).generation, number_ + 1, -1});
}

void DeviceResidency::Edit(TableEditKind kind, int layer, int expert, int32_t slot) {
  const uint32_t generation = slot < 0 ? 0 : state_.slots.slot(slot).generation;
  edits_.push_back({kind, layer, expert, slot, generation});
}

}  // namespace moed::cache
