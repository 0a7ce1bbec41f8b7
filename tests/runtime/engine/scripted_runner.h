// A step runner without weights: it keeps the tokens themselves in its KV blocks, and the next
// token of a sequence is a function of what it reads back there. So a wrong context, a block given
// to two sequences or a stale one changes the output. Steps can be held back to freeze the engine.
// Asked for passes, it has several layers of KV blocks, which a pass writes one after the other.
#pragma once

#include <atomic>
#include <chrono>
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

  // `pass_layers` 0: no passes.
  ScriptedRunner(const EngineOptions& options, NextToken next_token, int pass_layers = 0);

  // A pseudo-random token that depends on every token of the context, and is never below 10.
  static NextToken HashOfContext(int vocab_size);

  absl::Status Run(const model::StepInput& input, model::StepResult* result) override;
  absl::Status Begin(const model::StepInput&) override {
    ++steps_begun_;
    return absl::OkStatus();
  }
  absl::Status Settle() override {
    settled_steps_ = steps_.load();
    return settle_fails_ ? absl::InternalError("the trace is wrong") : absl::OkStatus();
  }
  int pass_layers() const override { return pass_layers_; }
  int max_tokens_beside_pass() const override { return max_num_seqs_; }
  absl::Status BeginPass(const model::StepInput& input) override;
  absl::Status AdvancePass(int layers) override;
  absl::Status FinishPass(model::StepResult* result) override;
  void AbandonPass(model::StepResult* result) override;

  // From any thread. Lets only so many further steps begin; AwaitHeld returns once the next one
  // waits to begin.
  void AllowSteps(int64_t count);
  void Hold() { AllowSteps(0); }
  void AwaitHeld();
  void Release() { AllowSteps(INT64_MAX); }
  // The same for the slices of passes.
  void HoldPass() { AllowSlices(0); }
  void AllowSlices(int64_t count);
  void AwaitPassHeld();
  // The next step fails, and with it the runner.
  void FailNextStep() { fails_ = true; }
  void FailNextSlice() { slice_fails_ = true; }
  // Prefill of more than a token takes so long a token, in a pass as in a step.
  void SetPrefillTime(std::chrono::microseconds a_token) { prefill_time_ = a_token; }

  void FailSettle() { settle_fails_ = true; }

  int64_t steps() const { return steps_; }
  int64_t steps_begun() const { return steps_begun_; }
  // As of the last Settle.
  int64_t settled_steps() const { return settled_steps_; }
  // The sum of the shares it has returned.
  double total_hits() const { return total_hits_; }
  int max_chunks_in_a_step() const { return max_chunks_; }
  int64_t passes_begun() const { return passes_begun_; }
  int64_t passes_finished() const { return passes_finished_; }
  int64_t passes_abandoned() const { return passes_abandoned_; }
  int64_t steps_beside_passes() const { return steps_beside_passes_; }

 private:
  // Lets steps, or slices, begin.
  struct Gate {
    int64_t allowed = INT64_MAX;
    bool waiting = false;
  };
  void PassGate(Gate& gate);
  void Allow(Gate& gate, int64_t count);
  void AwaitHeld(Gate& gate);

  int32_t& Place(int layer, const model::SequenceChunk& chunk, int position);
  void Write(int layer, const model::SequenceChunk& chunk, const int32_t* tokens);
  void FinishChunk(const model::SequenceChunk& chunk, const int32_t* tokens,
                   model::ChunkResult* result);
  void SpendPrefillTime(const model::StepInput& input, int parts) const;

  const int block_tokens_;
  const int max_num_seqs_;
  const int pass_layers_;
  const NextToken next_token_;
  std::vector<std::vector<int32_t>> kv_;  // by layer: the token at each place of each block
  const model::StepInput* pass_ = nullptr;
  int pass_layer_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  Gate steps_gate_;
  Gate slices_gate_;
  std::atomic<bool> fails_ = false;
  std::atomic<bool> slice_fails_ = false;
  std::atomic<bool> settle_fails_ = false;
  std::atomic<std::chrono::microseconds> prefill_time_ = std::chrono::microseconds(0);
  std::atomic<int64_t> steps_ = 0;
  std::atomic<int64_t> steps_begun_ = 0;
  std::atomic<int64_t> settled_steps_ = 0;
  std::atomic<double> total_hits_ = 0;
  std::atomic<int> max_chunks_ = 0;
  std::atomic<int64_t> passes_begun_ = 0;
  std::atomic<int64_t> passes_finished_ = 0;
  std::atomic<int64_t> passes_abandoned_ = 0;
  std::atomic<int64_t> steps_beside_passes_ = 0;
};

}  // namespace moed::engine
