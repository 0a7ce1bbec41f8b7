// Runs the model for everyone: one thread takes requests from a bounded queue, forms batches with
// the scheduler, runs steps and hands tokens to the output thread. Created once by the server;
// every public method is safe from any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/engine/request.h"
#include "runtime/model/step.h"
#include "runtime/text/tokenizer.h"

namespace moed::engine {

struct EngineOptions {
  int max_num_seqs = 0;
  int max_num_batched_tokens = 0;
  int64_t max_model_len = 0;
  int num_kv_blocks = 0;
  int kv_block_tokens = 0;
  int64_t max_queued_requests = 0;
  int64_t max_queued_tokens = 0;
  int vocab_size = 0;
  std::vector<int32_t> eos_token_ids;
};

// Numbers for metrics and health, copied after each step. Counters only grow.
struct EngineSnapshot {
  int64_t running = 0;         // sequences
  int64_t waiting = 0;         // requests that have not started, and preempted sequences
  int64_t waiting_tokens = 0;  // of the prompts of requests that have not started
  int64_t kv_blocks_total = 0;
  int64_t kv_blocks_used = 0;
  int64_t steps_total = 0;
  int64_t prompt_tokens_total = 0;
  int64_t generation_tokens_total = 0;
  int64_t preemptions_total = 0;
  int64_t finished_total[kNumSequenceEnds] = {};  // sequences
  double engine_busy_seconds_total = 0;           // time of the engine thread outside of Run
  double run_seconds_total = 0;
  absl::Time last_progress;  // a step ended, or the engine was idle and looked
  bool failed = false;       // the runner failed, or was abandoned; nothing more will run
};

class Engine {
 public:
  // `tokenizer` may be null: requests with detokenize or stop strings then get FAILED_PRECONDITION.
  static std::unique_ptr<Engine> Create(const EngineOptions& options, model::StepRunner* runner,
                                        const text::Tokenizer* tokenizer);
  virtual ~Engine() = default;

  // OK: the sink will hear OnDone. RESOURCE_EXHAUSTED: the queue is full; UNAVAILABLE: draining or
  // failed; INVALID_ARGUMENT: the prompt does not fit, a field is out of range; ALREADY_EXISTS: the
  // id is in use; FAILED_PRECONDITION: text without a tokenizer. A max_tokens beyond the context is
  // cut to it.
  virtual absl::Status Submit(Request request) = 0;
  // Ends a request within one step; unknown ids are ignored.
  virtual void Cancel(const std::string& request_id) = 0;
  // Refuses new requests; returns true once all are done, false at the deadline.
  virtual bool Drain(absl::Time deadline) = 0;
  // Runs `task` on the engine thread, between two steps; at the latest when the engine is
  // destroyed. The thread that the runner belongs to: what changes a runner while it serves goes
  // this way.
  virtual void Post(std::function<void()> task) = 0;
  // For who finds that the engine thread hangs: refuses new requests and ends every open one with
  // `why`, whatever that thread does. Nothing can be done with the engine afterwards. Its
  // destructor would still wait for the thread; exit the process instead.
  virtual void Abandon(const absl::Status& why) = 0;
  // Changes with every step, within a step as model::StepRunner::progress says, and while idle.
  // Takes no lock.
  virtual int64_t progress() const = 0;
  virtual EngineSnapshot Snapshot() const = 0;
};

}  // namespace moed::engine
