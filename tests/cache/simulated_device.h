// A device without hardware: keeps the working table (device_table_model.h) and runs steps some
// time after the host launched them, like a stream.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "cache/device_table.h"
#include "cache/expert_key.h"
#include "tests/cache/device_table_model.h"
#include "tests/cache/reference_arena.h"

namespace moed::cache {

class SimulatedDevice {
 public:
  SimulatedDevice(std::span<const int> experts_per_layer, ReferenceArena* arena)
      : table_(experts_per_layer), arena_(*arena) {}

  // Queues a step that uses `experts`, after the update if there is one.
  void Launch(std::optional<TableUpdate> update, std::vector<ExpertKey> experts) {
    queue_.push_back({std::move(update), std::move(experts)});
  }
  bool idle() const { return queue_.empty(); }

  // Runs the oldest queued step to its end.
  DeviceTrace RunOne() {
    const Step step = std::move(queue_.front());
    queue_.pop_front();
    if (step.update.has_value()) table_.Apply(*step.update);
    DeviceTrace trace{.table_number = table_.number()};
    for (ExpertKey key : step.experts) trace.uses.push_back(Use(key, step.experts));
    return trace;
  }

  const DeviceTableModel& table() const { return table_; }

 private:
  struct Step {
    std::optional<TableUpdate> update;
    std::vector<ExpertKey> experts;
  };

  DeviceUse Use(ExpertKey key, const std::vector<ExpertKey>& experts) {
    DeviceUse use{.layer = key.layer, .expert = key.expert, .tokens = 1, .weight = 1};
    const auto used = [&](int expert) {
      return std::find(experts.begin(), experts.end(), ExpertKey{key.layer, expert}) !=
             experts.end();
    };
    TableEntry entry = table_.entry(key);
    if (entry.slot >= 0) {
      arena_.StartRead(entry.slot, key, entry.generation);
      EXPECT_TRUE(arena_.filled(entry.slot));
      arena_.EndRead(entry.slot);
      use.kind = DeviceUseKind::kHit;
    } else if (table_.MayFill(key, used)) {
      entry = table_.Fill(key);
      arena_.StartFill(entry.slot, key, entry.generation);
      arena_.EndFill(entry.slot);
      use.kind = DeviceUseKind::kFilled;
    } else {
      return use;
    }
    use.slot = entry.slot;
    use.generation = entry.generation;
    return use;
  }

  DeviceTableModel table_;
  ReferenceArena& arena_;
  std::deque<Step> queue_;
};

}  // namespace moed::cache
