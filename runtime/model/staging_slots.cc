#include "runtime/model/staging_slots.h"

#include <algorithm>

namespace moed::model {
namespace {

// What a link brings while a layer gives no slot back: during its attention and its routing.
constexpr int64_t kStagingBytes = int64_t{96} << 20;
// Two being copied, two being computed.
constexpr int64_t kLeastSlots = 4;
constexpr int64_t kMostSlots = 16;
constexpr int64_t kMostStagingBytes = int64_t{1} << 30;

}  // namespace

int StagingSlots::Count(int64_t blob_bytes) {
  const int64_t wanted = std::clamp(kStagingBytes / blob_bytes, kLeastSlots, kMostSlots);
  return static_cast<int>(std::clamp<int64_t>(kMostStagingBytes / blob_bytes, 1, wanted));
}

StagingSlots::StagingSlots(int32_t first, int count) : first_(first), count_(count) {
  for (int32_t i = 0; i < count; ++i) GiveBack(first + i, /*after=*/0);
}

StagingSlots::Slot StagingSlots::Take() {
  const Slot slot = idle_.front();
  idle_.pop_front();
  return slot;
}

bool StagingSlots::IsAhead(cache::ExpertKey key) const {
  return std::any_of(ahead_.begin(), ahead_.end(),
                     [&](const Entry& entry) { return entry.key == key && !entry.dropped; });
}

bool StagingSlots::EndAhead(int32_t slot, bool ok) {
  const auto entry = std::find_if(ahead_.begin(), ahead_.end(), [&](const Entry& candidate) {
    return candidate.slot == slot && !candidate.read;
  });
  if (entry == ahead_.end()) return false;
  entry->read = true;
  if (!ok || entry->dropped) {
    ahead_.erase(entry);
    GiveBack(slot, /*after=*/0);
  }
  return true;
}

std::optional<StagingSlots::Ahead> StagingSlots::TakeAhead(cache::ExpertKey key) {
  const auto entry = std::find_if(ahead_.begin(), ahead_.end(), [&](const Entry& candidate) {
    return candidate.key == key && !candidate.dropped;
  });
  if (entry == ahead_.end()) return std::nullopt;
  const Ahead ahead = {entry->slot, entry->read};
  ahead_.erase(entry);
  return ahead;
}

void StagingSlots::DropAhead() {
  for (Entry& entry : ahead_) {
    entry.dropped = true;
    if (entry.read) GiveBack(entry.slot, /*after=*/0);
  }
  std::erase_if(ahead_, [](const Entry& entry) { return entry.read; });
}

}  // namespace moed::model
