// What becomes of a step's logits: sampled tokens and log-probabilities. On a device that samples,
// only these leave its memory; a row with more adjustments than the device has room for, and every
// row elsewhere, comes to the host and its Sampler. Owned by the model runner; engine thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "runtime/backend/backend.h"
#include "runtime/model/sampler.h"
#include "runtime/model/step.h"
#include "runtime/model/transformer.h"

namespace moed::model {

class StepSampler {
 public:
  // `on_device` of rows of `vocab_size` logits of a transformer on `backend`, or null.
  StepSampler(int vocab_size, std::unique_ptr<backend::RowSampler> on_device,
              backend::Backend& backend);

  // Fills one ChunkResult for each chunk of `input`, which `transformer` has run as `source`, and
  // accepts sampled tokens into their samplers. The input has run when it returns. The errors of
  // the backend.
  absl::Status Sample(const StepInput& input, LogitsOf source, Transformer& transformer,
                      StepResult* result);
  // The same in two parts: the first does not wait for a device that samples.
  void Issue(const StepInput& input, LogitsOf source, Transformer& transformer);
  absl::Status Finish(const StepInput& input, LogitsOf source, Transformer& transformer,
                      StepResult* result);

 private:
  // A row of logits that a step needs, and for what.
  struct LogitsUse {
    size_t chunk = 0;
    // The prompt token whose log-probability the row gives; -1: the row is sampled.
    int32_t prompt_token = -1;
  };

  void ListLogits(const StepInput& input);
  void UseOnHost(const StepInput& input, const LogitsUse& use, std::span<const float> logits,
                 StepResult* result);
  // Issues the sampling of rows_ from `begin` on, as many as there is room for.
  void IssueOnDevice(size_t begin, const StepInput& input, LogitsOf source,
                     Transformer& transformer);
  std::span<const LogitsUse> IssuedUses() const;
  // Asks for the rows of `uses`, as far as their adjustments have room.
  void AskDevice(const StepInput& input, std::span<const LogitsUse> uses,
                 const DeviceLogits& logits);
  absl::Status TakeAnswers(const StepInput& input, std::span<const LogitsUse> uses,
                           const DeviceLogits& logits, StepResult* result);
  void UseAnswer(const SequenceChunk& chunk, const LogitsUse& use,
                 const backend::SampledRow& sampled, ChunkResult* result);

  int vocab_size_;
  std::unique_ptr<backend::RowSampler> on_device_;
  backend::Backend& backend_;
  Sampler sampler_;
  std::vector<int32_t> rows_;    // of the step whose logits are needed
  std::vector<LogitsUse> uses_;  // of each of rows_
  // Of rows_, those from issued_begin_ on whose sampling was issued last.
  DeviceLogits issued_;
  size_t issued_begin_ = 0;
  // Of one RowSampler::Sample: what is asked, and for each use whether it is.
  std::vector<backend::RowSampling> asked_;
  std::vector<backend::LogitAdjustment> adjustments_;
  std::vector<bool> is_asked_;
  std::vector<float> host_row_;  // [V] a row that the device does not sample
};

}  // namespace moed::model
