// A device's working table without a device, by the rules of cache/device_table.h: what the
// simulated devices of tests and benchmarks share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "cache/device_table.h"
#include "cache/expert_index.h"
#include "cache/expert_key.h"

namespace moed::cache {

class DeviceTableModel {
 public:
  explicit DeviceTableModel(std::span<const int> experts_per_layer)
      : index_(experts_per_layer),
        entries_(index_.total_experts()),
        offered_(experts_per_layer.size()) {}

  void Apply(const TableUpdate& update) {
    for (const TableEdit& edit : update.edits) ApplyOne(edit);
    number_ = update.number;
  }

  // Of the last update applied.
  uint64_t number() const { return number_; }
  const TableEntry& entry(ExpertKey key) const { return entries_[index_.Of(key)]; }
  int num_offered(int layer) const { return static_cast<int>(offered_[layer].size()); }
  // Whether the expert lies in a slot that is on offer.
  bool LiesInOffer(ExpertKey key) const {
    return std::any_of(offered_[key.layer].begin(), offered_[key.layer].end(),
                       [&](const TableEdit& offer) { return Holds(offer, key.expert); });
  }

  // Whether a read of `key`, which has no slot, may fill one, in a step that uses those experts of
  // the layer of which used(expert) is true.
  bool MayFill(ExpertKey key, absl::FunctionRef<bool(int expert)> used) const {
    const std::vector<TableEdit>& offered = offered_[key.layer];
    if (entry(key).fill_allowed == 0 || offered.empty()) return false;
    const TableEdit& last = offered.back();
    return !Holds(last, last.expert) || !used(last.expert);
  }
  // Returns the slot, whose expert has none now. REQUIRES: MayFill.
  TableEntry Fill(ExpertKey key) {
    const TableEdit taken = offered_[key.layer].back();
    offered_[key.layer].pop_back();
    if (Holds(taken, taken.expert)) Entry({key.layer, taken.expert}).slot = -1;
    return Entry(key) = {.slot = taken.slot, .generation = taken.generation};
  }
  // The expert was read, and filled no slot: one wait more, if it may.
  void Wait(ExpertKey key) {
    TableEntry& entry = Entry(key);
    if (entry.fill_allowed != 0) ++entry.fill_allowed;
  }

 private:
  TableEntry& Entry(ExpertKey key) { return entries_[index_.Of(key)]; }
  bool Holds(const TableEdit& offer, int expert) const {
    return expert >= 0 && offer.expert == expert && entry({offer.layer, expert}).slot == offer.slot;
  }

  void ApplyOne(const TableEdit& edit) {
    std::vector<TableEdit>& offered = offered_[edit.layer];
    TableEntry& entry = Entry({edit.layer, std::max(edit.expert, 0)});
    switch (edit.kind) {
      case TableEditKind::kInsert:
        if (entry.slot < 0) entry = {.slot = edit.slot, .generation = edit.generation};
        entry.fill_allowed = 0;
        break;
      case TableEditKind::kEvict:
        if (entry.slot == edit.slot && entry.generation == edit.generation) entry.slot = -1;
        break;
      case TableEditKind::kOffer:
        offered.push_back(edit);
        break;
      case TableEditKind::kWithdraw:
        std::erase_if(offered, [&](const TableEdit& offer) { return offer.slot == edit.slot; });
        break;
      case TableEditKind::kAllowFill:
        entry.fill_allowed = 1;
        break;
      case TableEditKind::kForbidFill:
        entry.fill_allowed = 0;
        break;
    }
  }

  const ExpertIndex index_;
  std::vector<TableEntry> entries_;              // [all experts]
  std::vector<std::vector<TableEdit>> offered_;  // [layers], of kOffer
  uint64_t number_ = 0;
};

}  // namespace moed::cache
