// Keeps the hot set of a serving model in a file, so that a restarted daemon is warm before it is
// ready: written every so often, on request and when the daemon stops, and read by the next start.
// A file is replaced as a whole (written beside it, synced, renamed), so that a process killed at
// any moment leaves the old one or the new one.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "cache/hot_set_snapshot.h"

namespace moed::server {

// Where a hot set is kept and whose it is: a file of another model or shape is refused.
struct HotSetFile {
  std::string path;
  std::vector<int> experts_per_layer;
  std::string model;
};

// NOT_FOUND: there is none yet; else the errors of cache::ParseHotSet.
absl::StatusOr<cache::HotSet> ReadHotSet(const HotSetFile& file);
// UNAVAILABLE, naming the file, if it cannot be written.
absl::Status WriteHotSet(const HotSetFile& file, const cache::HotSet& hot_set);

class HotSetKeeper {
 public:
  // Has the hot set given to `take`, soon and on any thread.
  using Source = std::function<void(std::function<void(cache::HotSet)> take)>;
  using Saved = std::function<void(const absl::StatusOr<int>& residents)>;

  HotSetKeeper(HotSetFile file, absl::Duration interval, Source source);
  // Without a last save.
  ~HotSetKeeper();

  const HotSetFile& file() const { return file_; }
  // `saved` is called by the keeper's thread with the number of residents, or why not.
  void RequestSave(Saved saved);
  // Waits for it.
  absl::Status Save();

 private:
  void Run();
  absl::StatusOr<int> SaveOnce();
  bool Wanted() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return closing_ || !requests_.empty();
  }

  const HotSetFile file_;
  const absl::Duration interval_;
  const Source source_;
  absl::Mutex mutex_;
  std::vector<Saved> requests_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace moed::server
