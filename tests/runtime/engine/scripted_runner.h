// A step runner without weights: it keeps the tokens themselves in its KV blocks, and the next
// token of a sequence is a function of what it reads back there. So a wrong context, a block given
// to two sequences or a stale one changes the output. Steps can be held back to freeze the engine.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "runtime/engine/engine.h"
#include "runtime/model/step.h"

namespace moed::engine {

class ScriptedRunner final : public model::StepRunner {
 public:
  // The next token after `context`, all known tokens of the sequence; negative: invalid logits.
  using NextToken = std::function<int32_t(const std::vector<int32_t>& context)>;

  ScriptedRunner(const EngineOptions& options, NextToken next_token);

  // A pseudo-random token that depends on every token of the context, and is never below 10.
  static NextToken HashOfContext(int vocab_size);

  absl::Status Run(const model::StepInput& input, model::StepResult* result) override;

  // From any thread. Lets only so many further steps begin; AwaitHeld returns once the next one
  // waits to begin.
  void AllowSteps(int64_t count);
  void Hold() { AllowSteps(0); }
  void AwaitHeld();
  void Release() { AllowSteps(INT64_MAX); }
  // The next step fails, and with it the runner.
  void FailNextStep() { fails_ = true; }

  int64_t steps() const { return steps_; }
  // The sum of the shares it has returned.
  double total_hits() const { return total_hits_; }
  int max_chunks_in_a_step() const { return max_chunks_; }

 private:
  void PassGate();
  void RunChunk(const model::SequenceChunk& chunk, const int32_t* tokens,
                model::ChunkResult* result);

  const int block_tokens_;
  const NextToken next_token_;
  std::vector<int32_t> kv_;  // the token at each place of each block
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t allowed_steps_ = INT64_MAX;
  bool waiting_ = false;
  std::atomic<bool> fails_ = false;
  std::atomic<int64_t> steps_ = 0;
  std::atomic<double> total_hits_ = 0;
  std::atomic<int> max_chunks_ = 0;
};

}  // namespace moed::engine
