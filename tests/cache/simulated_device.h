// A device without hardware: keeps the working table as device_table.h demands and runs steps some
// time after the host launched them, like a stream.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "cache/device_table.h"
#include "cache/expert_key.h"
#include "tests/cache/reference_arena.h"

namespace moed::cache {

class SimulatedDevice {
 public:
  explicit SimulatedDevice(ReferenceArena* arena) : arena_(*arena) {}

  // Queues a step that uses `experts`, after the update if there is one.
  void Launch(std::optional<TableUpdate> update, std::vector<ExpertKey> experts) {
    queue_.push_back({std::move(update), std::move(experts)});
  }
  bool idle() const { return queue_.empty(); }

  // Runs the oldest queued step to its end.
  DeviceTrace RunOne() {
    const Step step = std::move(queue_.front());
    queue_.pop_front();
    if (step.update.has_value()) {
      table_number_ = step.update->number;
      for (const TableEdit& edit : step.update->edits) Apply(edit);
    }
    DeviceTrace trace{.table_number = table_number_};
    for (ExpertKey key : step.experts) trace.uses.push_back(Use(key));
    return trace;
  }

  const std::map<ExpertKey, TableEntry>& table() const { return table_; }
  int offered(int layer) { return static_cast<int>(offered_[layer].size()); }

 private:
  struct Step {
    std::optional<TableUpdate> update;
    std::vector<ExpertKey> experts;
  };
  struct OfferedSlot {
    int32_t slot;
    uint32_t generation;
  };

  void Apply(const TableEdit& edit) {
    TableEntry& entry = table_[{edit.layer, edit.expert}];
    std::vector<OfferedSlot>& offered = offered_[edit.layer];
    switch (edit.kind) {
      case TableEditKind::kInsert:
        if (entry.slot < 0) entry = {.slot = edit.slot, .generation = edit.generation};
        entry.fill_allowed = 0;
        break;
      case TableEditKind::kEvict:
        if (entry.slot == edit.slot && entry.generation == edit.generation) {
          entry.slot = -1;
        }
        break;
      case TableEditKind::kOffer:
        offered.push_back({edit.slot, edit.generation});
        break;
      case TableEditKind::kWithdraw:
        std::erase_if(offered, [&](const OfferedSlot& o) { return o.slot == edit.slot; });
        break;
      case TableEditKind::kAllowFill:
        entry.fill_allowed = 1;
        break;
      case TableEditKind::kForbidFill:
        entry.fill_allowed = 0;
        break;
    }
  }

  DeviceUse Use(ExpertKey key) {
    TableEntry& entry = table_[key];
    DeviceUse use{.layer = key.layer, .expert = key.expert, .tokens = 1, .weight = 1};
    if (entry.slot >= 0) {
      arena_.StartRead(entry.slot, key, entry.generation);
      EXPECT_TRUE(arena_.filled(entry.slot));
      arena_.EndRead(entry.slot);
      use.kind = DeviceUseKind::kHit;
    } else if (entry.fill_allowed != 0 && !offered_[key.layer].empty()) {
      const OfferedSlot taken = offered_[key.layer].back();
      offered_[key.layer].pop_back();
      arena_.StartFill(taken.slot, key, taken.generation);
      arena_.EndFill(taken.slot);
      entry = {.slot = taken.slot, .generation = taken.generation};
      use.kind = DeviceUseKind::kFilled;
    } else {
      return use;
    }
    use.slot = entry.slot;
    use.generation = entry.generation;
    return use;
  }

  ReferenceArena& arena_;
  std::deque<Step> queue_;
  std::map<ExpertKey, TableEntry> table_;
  std::map<int, std::vector<OfferedSlot>> offered_;
  uint64_t table_number_ = 0;
};

}  // namespace moed::cache
