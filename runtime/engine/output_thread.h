// The thread between the engine and the sinks: the engine pushes one batch a step and never waits
// for text, stop strings or a client. Made by the engine; Push is for the engine thread.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "runtime/engine/output_stream.h"
#include "runtime/engine/snapshot_board.h"
#include "runtime/engine/submission_queue.h"

namespace moed::engine {

struct TokenEvent {
  OutputStream* stream = nullptr;  // lives until the request's DoneEvent has been delivered
  scheduler::SequenceId sequence = 0;
  int index = 0;  // which of the request's n
  OutputToken token = {};
};

struct DoneEvent {
  std::unique_ptr<OutputStream> stream;
  std::string request_id;
  absl::Status status;
  Usage usage;
};

// Of one step, or of several when the output thread lags behind. A request's DoneEvent comes after
// all its tokens.
struct OutputBatch {
  std::vector<TokenEvent> tokens;
  std::vector<DoneEvent> done;

  bool empty() const { return tokens.empty() && done.empty(); }
  void clear();
};

class OutputThread {
 public:
  // Both must outlive this.
  OutputThread(SubmissionQueue* queue, SnapshotBoard* board);
  // Delivers what was pushed, then ends the thread.
  ~OutputThread();

  // A stream that will have a DoneEvent. Engine thread.
  void Open(OutputStream* stream);
  // Ends all open streams and those of `unstarted` with `why`, from any thread: the engine thread
  // hangs. What it still pushes for them, if it wakes, is dropped.
  void Abandon(const absl::Status& why, std::vector<DoneEvent> unstarted);

  // Takes the batch and leaves it empty. Waits only if the thread is some 65 000 tokens behind, so
  // that memory stays bounded whatever a sink does.
  void Push(OutputBatch* batch);

 private:
  void Run();
  // Also what is to be ended because it was abandoned. False: there is nothing more to do.
  bool Take(OutputBatch* batch, std::vector<OutputStream*>* abandoned);
  void DropAbandoned(OutputBatch* batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Deliver(OutputBatch& batch);
  void EndAbandoned(const std::vector<OutputStream*>& streams);

  SubmissionQueue* const queue_;
  SnapshotBoard* const board_;
  std::mutex mutex_;
  std::condition_variable changed_;
  OutputBatch pending_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<OutputStream*> open_ ABSL_GUARDED_BY(mutex_);
  absl::Status abandonment_ ABSL_GUARDED_BY(mutex_);          // not OK: why
  std::vector<DoneEvent> unstarted_ ABSL_GUARDED_BY(mutex_);  // abandoned: kept for their streams
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses everything above
};

}  // namespace moed::engine
