// The slots in a device's memory that a prompt's experts pass through when they have none of their
// own: which are idle, and which hold, or are getting, an expert that its layer did not ask for
// yet. Owned by ExpertStore; engine thread only.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "cache/expert_key.h"

namespace moed::model {

class StagingSlots {
 public:
  // A slot to read into, once the ops that `after` names are finished (Backend::Issued).
  struct Slot {
    int32_t id = -1;
    uint64_t after = 0;
  };
  // An expert that was read ahead. Its slot is the taker's to give back.
  struct Ahead {
    int32_t slot = -1;
    bool read = false;  // else the read is under way
  };

  // How many slots experts of `blob_bytes` pass through.
  static int Count(int64_t blob_bytes);

  // None; as on a store without staging.
  StagingSlots() = default;
  // Slots `first` to `first` + `count` - 1.
  StagingSlots(int32_t first, int count);

  bool Owns(int32_t slot) const { return slot >= first_ && slot < first_ + count_; }
  bool AnyIdle() const { return !idle_.empty(); }
  // The one that was given back first. Only if any is idle.
  Slot Take();
  void GiveBack(int32_t slot, uint64_t after) { idle_.push_back({slot, after}); }

  // `slot`, which was taken, is being read into for a later layer.
  void AddAhead(cache::ExpertKey key, int32_t slot) { ahead_.push_back({key, slot}); }
  bool IsAhead(cache::ExpertKey key) const;
  // A read into `slot` ended. False: it was none that was read ahead.
  bool EndAhead(int32_t slot, bool ok);
  std::optional<Ahead> TakeAhead(cache::ExpertKey key);
  // Nobody takes what was read ahead so far: the slots become idle when their reads have ended.
  void DropAhead();

 private:
  struct Entry {
    cache::ExpertKey key;
    int32_t slot = -1;
    bool read = false;
    bool dropped = false;
  };

  int32_t first_ = 0;
  int count_ = 0;
  std::deque<Slot> idle_;
  std::vector<Entry> ahead_;
};

}  // namespace moed::model
