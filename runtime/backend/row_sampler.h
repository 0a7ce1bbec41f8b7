// Samples rows of logits where they lie, in a device's memory, and leaves only what was chosen. A
// backend may offer it (Backend::CreateRowSampler); elsewhere the model samples on the host. Owned
// by the model's step sampler; engine thread.
//
// Semantics are those of model::Sampler, in its order: penalties, biases, forbidden tokens; then
// greedy, or temperature, top-k, top-p and min-p. Ties go to the lower id. Weights are the host's,
// computed by the same float operations; sums are exact sums of weights rounded to 2^-43 of the
// highest one. So for the same logits and draw the token is the host's unless the draw falls within
// 1e-7 of the total of a boundary between two tokens, or the nucleus of top-p ends within 1e-6 of
// its fraction. Log-probabilities differ by at most 1e-6 + 1e-6 of their size. Equal inputs give
// equal results, whatever else is in the batch.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "runtime/backend/tensor.h"

namespace moed::backend {

inline constexpr int kMaxTopLogprobs = 20;

// A value for a token's logit: what a penalty subtracts, or a bias adds.
struct LogitAdjustment {
  int32_t token = 0;
  float value = 0;
};

// What is wanted of one row.
struct RowSampling {
  int32_t row = 0;     // of the logits
  int32_t token = -1;  // its log-probability is wanted and nothing is chosen; -1: choose
  // Log-probabilities of the chosen or given token and the most probable ones; -1: none at all.
  int32_t logprobs = -1;
  float inverse_temperature = 1.0f;  // 0: greedy
  int32_t top_k = 0;                 // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  double draw = 0;  // uniform in [0, 1)
  // Ranges of the step's adjustments, one after the other from `first_adjustment` on. Penalties:
  // each token once; its logit is multiplied by repetition_penalty if negative, else divided, then
  // reduced by the value. Biases: in order of tokens. Forbidden tokens: the value is ignored.
  int32_t first_adjustment = 0;
  int32_t num_penalties = 0;
  int32_t num_biases = 0;
  int32_t num_forbidden = 0;
};

struct SampledRow {
  int32_t token = -1;
  // The row holds a NaN or +infinity, or nothing to choose is left; nothing else is valid then.
  int32_t invalid = 0;
  // Natural logs of the softmax of the unadjusted logits: of the token, and of the most probable
  // ones in falling order, as many as were asked for or as there are.
  float logprob = 0;
  int32_t top_tokens[kMaxTopLogprobs] = {};
  float top_logprobs[kMaxTopLogprobs] = {};
};

struct RowSamplerOptions {
  int vocab_size = 0;
  int max_rows = 0;  // at a time
};

class RowSampler {
 public:
  virtual ~RowSampler() = default;

  virtual int max_rows() const = 0;
  virtual int max_adjustments() const = 0;  // of all rows

  // Issues the sampling of `rows` of `logits` [any, V] f32 in device memory, which stay as they
  // are. Both spans are copied. At most max_rows and max_adjustments; once per Wait.
  virtual void Sample(const Tensor& logits, std::span<const RowSampling> rows,
                      std::span<const LogitAdjustment> adjustments) = 0;

  // Waits for the last Sample, but for nothing that was issued after it. The errors of
  // Backend::Synchronize.
  virtual absl::Status Wait() = 0;

  // Of the last Sample, in order of its rows: valid after Wait, until the next.
  virtual std::span<const SampledRow> results() const = 0;
};

// Room for adjustments: the distinct tokens of a context of some thousands for every row.
inline constexpr int kAdjustmentsPerRow = 4096;

// What a sampler of `max_rows` takes of the device's memory, and once more of pinned memory.
inline constexpr int64_t RowSamplerBytes(int64_t max_rows) {
  return max_rows *
         static_cast<int64_t>(sizeof(RowSampling) + kAdjustmentsPerRow * sizeof(LogitAdjustment));
}

}  // namespace moed::backend
