// The side of ModelRunner that runs a long prefill in slices, between which steps run.
#include "absl/base/internal/raw_logging.h"
#include "runtime/model/model_runner.h"

namespace moed::model {

absl::Status ModelRunner::BeginPass(const StepInput& input) {
  ABSL_RAW_CHECK(pass_ == nullptr, "a pass begins while another is in flight");
  if (absl::Status status = CheckStep(input); !status.ok()) return status;
  pass_ = &input;
  transformer_->BeginPass(input);
  return absl::OkStatus();
}

absl::Status ModelRunner::AdvancePass(int layers) {
  ABSL_RAW_CHECK(pass_ != nullptr, "there is no pass to advance");
  return transformer_->AdvancePass(layers);
}

absl::Status ModelRunner::FinishPass(StepResult* result) {
  ABSL_RAW_CHECK(pass_ != nullptr && transformer_->pass_layers_left() == 0,
                 "a pass is finished before its layers have run");
  const StepInput& input = *pass_;
  absl::Status status = sampler_->Sample(input, LogitsOf::kPass, *transformer_, result);
  if (!status.ok()) return status;
  pass_ = nullptr;
  transformer_->EndPass(&shares_);
  EndStep(result);
  return absl::OkStatus();
}

void ModelRunner::AbandonPass(StepResult* result) {
  ABSL_RAW_CHECK(pass_ != nullptr, "there is no pass to abandon");
  result->chunks.assign(pass_->chunks.size(), ChunkResult{});
  pass_ = nullptr;
  transformer_->EndPass(&shares_);
  EndStep(result);
}

}  // namespace moed::model
