// Where the engine's threads post their numbers and any thread reads them.
#pragma once

#include <mutex>

#include "absl/base/thread_annotations.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/output_stream.h"

namespace moed::engine {

class SnapshotBoard {
 public:
  // The engine thread's numbers, after each step; what the output thread counts is kept.
  void Publish(const EngineSnapshot& snapshot);
  // By the output thread.
  void Add(const OutputCounts& counts);

  EngineSnapshot Read() const;

 private:
  mutable std::mutex mutex_;
  EngineSnapshot snapshot_ ABSL_GUARDED_BY(mutex_);
  OutputCounts output_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moed::engine
