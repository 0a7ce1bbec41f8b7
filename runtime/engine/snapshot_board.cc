#include "runtime/engine/snapshot_board.h"

#include <algorithm>
#include <iterator>

namespace moed::engine {

void SnapshotBoard::Publish(const EngineSnapshot& snapshot) {
  std::lock_guard lock(mutex_);
  snapshot_ = snapshot;
}

void SnapshotBoard::Add(const OutputCounts& counts) {
  std::lock_guard lock(mutex_);
  output_.generation_tokens += counts.generation_tokens;
  for (size_t i = 0; i < std::size(output_.finished); ++i)
    output_.finished[i] += counts.finished[i];
}

EngineSnapshot SnapshotBoard::Read() const {
  std::lock_guard lock(mutex_);
  EngineSnapshot snapshot = snapshot_;
  snapshot.generation_tokens_total = output_.generation_tokens;
  std::copy(std::begin(output_.finished), std::end(output_.finished), snapshot.finished_total);
  return snapshot;
}

}  // namespace moed::engine
