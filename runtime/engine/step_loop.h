// The engine thread: takes messages, asks the scheduler for a batch, runs it and hands the tokens
// to the output thread. Owns the scheduler and every open request; the runner is its alone.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/output_thread.h"
#include "runtime/engine/request_state.h"
#include "runtime/engine/snapshot_board.h"
#include "runtime/engine/stopwatch.h"
#include "runtime/engine/submission_queue.h"
#include "runtime/model/step.h"
#include "runtime/scheduler/scheduler.h"

namespace moed::engine {

class StepLoop {
 public:
  // All pointers must outlive this.
  StepLoop(const EngineOptions& options, model::StepRunner* runner, SubmissionQueue* queue,
           OutputThread* output, SnapshotBoard* board);

  // Returns after SubmissionQueue::Shutdown, when every request has been ended.
  void Run();

  // The longest sequence that can ever run. Constant, so safe from any thread.
  int64_t max_sequence_tokens() const { return scheduler_.max_sequence_tokens(); }

 private:
  struct RunningSequence {
    RequestState* request = nullptr;
    SequenceState* state = nullptr;
  };

  void HandleMessages();
  void Open(std::unique_ptr<RequestState> request);
  void EndExpired();

  void Step();
  void BuildInput(const std::vector<scheduler::ScheduledChunk>& chunks);
  void AddChunk(const scheduler::ScheduledChunk& chunk, const RunningSequence& sequence);
  void Start(RequestState& request);
  void HandleResult();
  void CollectPromptLogprobs(RequestState& request, const model::SequenceChunk& chunk,
                             model::ChunkResult& result);
  void HandleToken(const RunningSequence& sequence, model::ChunkResult& result);

  void EndSequence(const RunningSequence& sequence);
  void EndRequest(RequestState& request, absl::Status status);
  void EndAll(const absl::Status& status);
  void Publish();

  model::StepRunner* const runner_;
  SubmissionQueue* const queue_;
  OutputThread* const output_;
  SnapshotBoard* const board_;

  scheduler::Scheduler scheduler_;
  scheduler::SequenceId next_sequence_id_ = 0;
  scheduler::GroupId next_group_id_ = 0;
  absl::flat_hash_map<std::string, std::unique_ptr<RequestState>> requests_;
  absl::flat_hash_map<scheduler::SequenceId, RunningSequence> sequences_;  // not yet ended
  std::set<std::pair<absl::Time, RequestState*>> deadlines_;
  int64_t num_unstarted_sequences_ = 0;

  // Reused from step to step.
  EngineMessages messages_;
  model::StepInput input_;
  model::StepResult result_;
  std::vector<scheduler::SequenceId> batch_;  // whose chunk it is, as input_.chunks
  OutputBatch out_;

  absl::Status failure_;  // of the runner; final
  Stopwatch stopwatch_;
  EngineSnapshot snapshot_;
};

}  // namespace moed::engine
