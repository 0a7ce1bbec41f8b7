// Reads experts into slots on its own threads, so that the compute thread works on resident experts
// meanwhile. All threads read the expert that was asked for first, a share each, then the next: the
// few misses of a layer keep them all busy, and the first can be computed soonest. Owned by
// ExpertStore; Start and Wait belong to one thread, the engine's.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "cache/expert_key.h"
#include "runtime/model/expert_source.h"

namespace moed::model {

class ExpertLoader {
 public:
  // A read that ended, well or not. `slot` is what Start was given.
  struct Completion {
    cache::ExpertKey key;
    int32_t slot = -1;
    absl::Status status;
  };

  // `source` must outlive the loader.
  ExpertLoader(const ExpertSource& source, int num_threads);
  // Finishes the reads that began and drops the rest.
  ~ExpertLoader();
  ExpertLoader(const ExpertLoader&) = delete;
  ExpertLoader& operator=(const ExpertLoader&) = delete;

  // Queues a read of `key` into `blob`, which nobody else may touch until its completion is taken,
  // but for the ops that `after` names (Backend::Issued): those are waited for.
  void Start(cache::ExpertKey key, int32_t slot, std::span<std::byte> blob, uint64_t after = 0,
             Reread reread = Reread::kLikely);

  // Takes the completions there are, in the order in which reads ended, without waiting.
  void Poll(std::vector<Completion>* completions);
  // The same, but waits for at least one. Only while reads are outstanding.
  void Wait(std::vector<Completion>* completions);

  // Reads started whose completion was not taken yet.
  int64_t outstanding() const { return outstanding_; }

 private:
  struct Job {
    cache::ExpertKey key;
    int32_t slot = -1;
    std::span<std::byte> blob;
    uint64_t after = 0;
    Reread reread = Reread::kLikely;
    int shares = 1;
    int begun = 0;  // of these
    int ended = 0;
    absl::Status status;  // the first error
  };

  void RunThread();
  std::shared_ptr<Job> TakeShare(ReadShare* share);
  void EndShare(Job& job, const absl::Status& status);
  void TakeCompletions(std::vector<Completion>* completions);

  const ExpertSource& source_;
  int64_t outstanding_ = 0;  // engine thread's own
  std::mutex mutex_;
  std::condition_variable job_queued_;
  std::condition_variable job_done_;
  std::deque<std::shared_ptr<Job>> queue_;  // not wholly begun; guarded by mutex_
  std::vector<Completion> done_;            // guarded by mutex_
  bool stopping_ = false;                   // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace moed::model
