// The engine thread: takes messages, asks the scheduler for a batch, runs it and hands the tokens
// to the output thread. Owns the scheduler and every open request; the runner is its alone.
//
// A prefill that is too long to join the decodes' step runs as a pass: after each step of decodes
// as many of its layers as PassPacer allows, all that are left when nothing decodes.
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
#include "runtime/engine/pass_pacer.h"
#include "runtime/engine/request_state.h"
#include "runtime/engine/snapshot_board.h"
#include "runtime/engine/stopwatch.h"
#include "runtime/engine/submission_queue.h"
#include "runtime/model/heartbeat.h"
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
  // Rises while Run goes round. Safe from any thread.
  int64_t iterations() const { return heartbeat_.beats(); }

 private:
  struct RunningSequence {
    RequestState* request = nullptr;
    SequenceState* state = nullptr;
  };

  void HandleMessages();
  void Open(std::unique_ptr<RequestState> request);
  void EndExpired();

  // What the runner is given at once, and whose chunks it is made of.
  struct Batch {
    model::StepInput input;
    std::vector<scheduler::SequenceId> sequences;
  };

  void Step();
  void Settle();
  // False if the runner failed.
  bool RunBatch(const std::vector<scheduler::ScheduledChunk>& chunks);
  void Fail(const absl::Status& status);
  void BuildBatch(const std::vector<scheduler::ScheduledChunk>& chunks, Batch* batch);
  void AddChunk(const scheduler::ScheduledChunk& chunk, const RunningSequence& sequence,
                Batch* batch);
  void Start(RequestState& request);
  void AddShares(const Batch& batch);
  void HandleResult(const Batch& batch);
  void CollectPromptLogprobs(RequestState& request, const model::SequenceChunk& chunk,
                             model::ChunkResult& result);
  void HandleToken(const RunningSequence& sequence, model::ChunkResult& result);

  // step_loop_pass.cc
  int64_t MaxJoinedTokens() const;
  void BeginPass();
  void AdvancePass(bool beside_decodes);
  void FinishPass();
  // Tells the runner if the scheduler has abandoned the pass.
  void FollowPass();
  // Its request may be gone before the pass ends.
  void LeavePass(scheduler::SequenceId sequence);

  void RemoveSequence(scheduler::SequenceId sequence);
  void EndSequence(const RunningSequence& sequence);
  void EndRequest(RequestState& request, absl::Status status);
  void EndAll(const absl::Status& status);
  void Publish();
  // Publishes, and hands over what the last steps gave.
  void Deliver();

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
  Batch batch_;
  model::StepResult result_;
  OutputBatch out_;

  const bool has_passes_;
  PassPacer pacer_;
  Batch pass_;
  bool pass_running_ = false;  // in the runner
  int pass_layers_left_ = 0;
  double pass_seconds_ = 0;

  model::Heartbeat heartbeat_;
  absl::Status failure_;  // of the runner; final
  Stopwatch stopwatch_;
  EngineSnapshot snapshot_;
};

}  // namespace moed::engine
