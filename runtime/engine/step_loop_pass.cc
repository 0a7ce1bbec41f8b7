// The side of StepLoop that runs a long prefill between steps of decodes.
#include <limits>

#include "runtime/engine/step_loop.h"

namespace moed::engine {

int64_t StepLoop::MaxJoinedTokens() const {
  return has_passes_ ? pacer_.MaxJoinedTokens() : std::numeric_limits<int64_t>::max();
}

void StepLoop::BeginPass() {
  BuildBatch(scheduler_.pass(), &pass_);
  const absl::Status status = runner_->BeginPass(pass_.input);
  if (!status.ok()) return Fail(status);
  pass_running_ = true;
  pass_layers_left_ = runner_->pass_layers();
  pass_seconds_ = 0;
}

void StepLoop::AdvancePass(bool beside_decodes) {
  // The decodes' tokens need not wait for the slice.
  Deliver();
  snapshot_.engine_busy_seconds_total += stopwatch_.Lap();
  double slice_seconds = 0;
  do {
    const int layers = beside_decodes ? 1 : pass_layers_left_;
    const absl::Status status = runner_->AdvancePass(layers);
    const double seconds = stopwatch_.Lap();
    slice_seconds += seconds;
    snapshot_.run_seconds_total += seconds;
    if (!status.ok()) return Fail(status);
    pass_layers_left_ -= layers;
  } while (pass_layers_left_ > 0 && pacer_.MayGoOn(slice_seconds));
  pass_seconds_ += slice_seconds;
  if (pass_layers_left_ == 0) FinishPass();
}

void StepLoop::FinishPass() {
  const absl::Status status = runner_->FinishPass(&result_);
  const double seconds = stopwatch_.Lap();
  snapshot_.run_seconds_total += seconds;
  if (!status.ok()) return Fail(status);
  pass_running_ = false;
  ++snapshot_.steps_total;
  pacer_.ObservePass(static_cast<int64_t>(pass_.input.token_ids.size()), pass_seconds_ + seconds);
  scheduler_.FinishPass();
  HandleResult(pass_);
}

void StepLoop::FollowPass() {
  if (!pass_running_ || !scheduler_.pass().empty()) return;
  pass_running_ = false;
  runner_->AbandonPass(&result_);
  AddShares(pass_);
}

void StepLoop::LeavePass(scheduler::SequenceId sequence) {
  if (!pass_running_) return;
  for (size_t i = 0; i < pass_.sequences.size(); ++i) {
    if (pass_.sequences[i] != sequence) continue;
    pass_.input.chunks[i].sampler = nullptr;
    pass_.input.chunks[i].prompt_logprobs = -1;
  }
}

}  // namespace moed::engine
