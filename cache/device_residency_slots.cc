// The slots that a layer gives to the device and takes back: offered, with or without an expert that
// still lies there, withdrawn, evicted in another layer's favour, reclaimed. When is
// device_residency.cc's to say.
#include <algorithm>
#include <vector>

#include "cache/device_residency.h"

namespace moed::cache {

// The coldest last, which is filled first.
void DeviceResidency::OfferVictims(int layer, std::span<const int32_t> victims) {
  for (auto slot = victims.rbegin(); slot != victims.rend(); ++slot) {
    if (state_.slots.slot(*slot).key.layer == layer) {
      OfferHeld(layer, *slot);
    } else {
      EvictFor(layer, *slot);
    }
  }
}

// As many slots, on offer or on their way, as experts are wanted.
void DeviceResidency::OfferFreeSlots(int layer) {
  LayerPlan& plan = layers_[layer];
  const int32_t wanted = static_cast<int32_t>(plan.allowed.size()) - plan.coming;
  while (static_cast<int32_t>(plan.offered.size()) > std::max(wanted, 0)) Withdraw(layer);
  while (static_cast<int32_t>(plan.offered.size()) < wanted && state_.slots.free_slots() > 0) {
    plan.offered.push_back(state_.slots.Offer(layer));
    Edit(TableEditKind::kOffer, layer, -1, plan.offered.back());
  }
}

// An expert's slot to the device, which reads it there until it fills the slot with another.
void DeviceResidency::OfferHeld(int layer, int32_t slot) {
  const Slot held = state_.slots.slot(slot);
  formers_[slot] = {.expert = held.key.expert, .generation = held.generation};
  state_.slots.OfferHeld(slot);
  layers_[layer].offered.push_back(slot);
  Edit(TableEditKind::kOffer, layer, held.key.expert, slot);
}

// `layer`: in whose favour, or -1.
void DeviceResidency::EvictFor(int layer, int32_t slot) {
  const Slot& victim = state_.slots.slot(slot);
  Edit(TableEditKind::kEvict, victim.key.layer, victim.key.expert, slot);
  ++state_.counters[victim.key.layer].evictions_total;
  AddLeaving({slot, victim.generation, number_ + 1, layer});
  if (layer >= 0) ++layers_[layer].coming;
  state_.slots.Retire(slot);
}

// The offer stands.
void DeviceResidency::EvictFormer(int32_t slot) {
  Former& former = formers_[slot];
  if (former.expert < 0 || former.evicted_by != 0) return;
  const int layer = state_.slots.slot(slot).key.layer;
  edits_.push_back({TableEditKind::kEvict, layer, former.expert, slot, former.generation});
  former.evicted_by = number_ + 1;
  ++state_.counters[layer].evictions_total;
}

// Where the expert lies in an offered slot, or one withdrawn, now that it has another.
void DeviceResidency::EvictFormersOf(ExpertKey key) {
  const auto evict = [&](int32_t slot) {
    if (formers_[slot].expert == key.expert) EvictFormer(slot);
  };
  for (const int32_t slot : layers_[key.layer].offered) evict(slot);
  for (const Leaving& leaving : leaving_) {
    if (state_.slots.slot(leaving.slot).key.layer == key.layer) evict(leaving.slot);
  }
}

// Those whose old expert was used again: what was decided by its absence no longer holds.
void DeviceResidency::WithdrawUsed(int layer) {
  std::erase_if(layers_[layer].offered, [&](int32_t slot) {
    const Former& former = formers_[slot];
    const bool withdraw =
        former.expert >= 0 && former.evicted_by == 0 && UsedLately({layer, former.expert});
    if (withdraw) Leave(layer, slot);
    return withdraw;
  });
}

// Since the last Publish.
bool DeviceResidency::UsedLately(ExpertKey key) const {
  return state_.routing.last_use_step(key) > state_.routing.step() - num_replayed_;
}

// One that its old expert keeps, if there is any; returns it.
int32_t DeviceResidency::Withdraw(int layer) {
  std::vector<int32_t>& offered = layers_[layer].offered;
  const auto held = std::find_if(offered.begin(), offered.end(), [&](int32_t candidate) {
    return formers_[candidate].expert >= 0 && formers_[candidate].evicted_by == 0;
  });
  const auto withdrawn = held != offered.end() ? held : offered.end() - 1;
  const int32_t slot = *withdrawn;
  offered.erase(withdrawn);
  Leave(layer, slot);
  return slot;
}

// The device may have filled the slot already; then the trace will say so and the slot stays.
void DeviceResidency::Leave(int layer, int32_t slot) {
  Edit(TableEditKind::kWithdraw, layer, -1, slot);
  AddLeaving({slot, state_.slots.slot(slot).generation, number_ + 1, -1});
}

void DeviceResidency::AddLeaving(const Leaving& leaving) {
  const auto later = [](uint64_t number, const Leaving& other) { return number < other.number; };
  leaving_.insert(std::upper_bound(leaving_.begin(), leaving_.end(), leaving.number, later),
                  leaving);
}

void DeviceResidency::ReclaimUpTo(uint64_t table_number) {
  while (!leaving_.empty() && leaving_.front().number <= table_number) {
    const Leaving leaving = leaving_.front();
    leaving_.pop_front();
    Reclaim(leaving);
  }
}

void DeviceResidency::Reclaim(const Leaving& leaving) {
  if (state_.slots.slot(leaving.slot).state == SlotState::kOffered) {
    if (RestoreFormer(leaving.slot)) return;
    EvictFormer(leaving.slot);
    const uint64_t evicted_by = formers_[leaving.slot].evicted_by;
    if (evicted_by > number_in_use_) {
      AddLeaving({leaving.slot, leaving.generation, evicted_by, leaving.layer});
      return;
    }
    formers_[leaving.slot] = {};
    state_.slots.Retire(leaving.slot);
  }
  state_.slots.Reclaim(leaving.slot);
  if (leaving.layer < 0) return;
  --layers_[leaving.layer].coming;
  OfferFreeSlots(leaving.layer);  // at once, before another layer takes it
}

// False: there is none to restore, or it has got another slot meanwhile.
bool DeviceResidency::RestoreFormer(int32_t slot) {
  const Former former = formers_[slot];
  const ExpertKey key{state_.slots.slot(slot).key.layer, former.expert};
  if (former.expert < 0 || former.evicted_by != 0 || state_.slots.SlotOf(key) >= 0) return false;
  state_.slots.Restore(slot, key, former.generation);
  formers_[slot] = {};
  return true;
}

}  // namespace moed::cache
