// The only way into the engine thread: new requests, cancels, stop strings found by the output
// thread, and tasks for the runner. Bounded by the requests and prompt tokens that have been
// accepted and have not started. It also knows which requests are open, for ids and for draining.
// Safe from any thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/engine/request_state.h"
#include "runtime/scheduler/scheduler.h"

namespace moed::engine {

// What the engine thread has to look at before its next step, in the order of the fields.
struct EngineMessages {
  std::vector<std::unique_ptr<RequestState>> requests;
  absl::flat_hash_set<std::string> cancelled;
  std::vector<scheduler::SequenceId> stopped;  // a stop string matched
  std::vector<std::function<void()>> tasks;
  bool shutdown = false;
};

class SubmissionQueue {
 public:
  SubmissionQueue(int64_t max_requests, int64_t max_tokens);

  // Gives the request an id if it has none. RESOURCE_EXHAUSTED: too many requests or prompt tokens
  // wait already (a single prompt longer than the limit may wait alone); ALREADY_EXISTS: its id is
  // in use; or the status given to Refuse.
  absl::Status Push(std::unique_ptr<RequestState> request);
  void Cancel(const std::string& request_id);
  void StopMatched(scheduler::SequenceId sequence);
  void Post(std::function<void()> task);
  // From now on Push returns `why`.
  void Refuse(absl::Status why);
  void Shutdown();

  // Moves everything into `messages` (emptied first). Waits for something at most `patience`.
  void Take(std::chrono::milliseconds patience, EngineMessages* messages);
  // The requests that the engine thread has not taken yet; they wait no longer.
  std::vector<std::unique_ptr<RequestState>> TakeRequests();
  // A request has started or ended and waits no longer.
  void Leave(const RequestState& request);

  // An open request is about to hear OnDone: its id may be used again.
  void ReleaseId(const std::string& request_id);
  // It has heard it.
  void Close();
  // Waits until no request is open; false at the deadline.
  bool WaitUntilAllClosed(absl::Time deadline);

  struct Waiting {
    int64_t requests = 0;
    int64_t tokens = 0;
  };
  Waiting waiting() const;

 private:
  absl::Status CheckRoom(int64_t prompt_tokens) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string MakeUpId() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasMessages() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t max_requests_;
  const int64_t max_tokens_;
  mutable std::mutex mutex_;
  std::condition_variable has_messages_;
  std::condition_variable all_closed_;
  EngineMessages messages_ ABSL_GUARDED_BY(mutex_);
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);
  Waiting waiting_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<std::string> ids_ ABSL_GUARDED_BY(mutex_);  // in use
  int64_t num_open_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t num_made_up_ids_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace moed::engine
