// The attention half of a decoder layer: residual += W_o attention(q, k, v) with q, k, v from the
// normed residual, over the paged KV cache. Stateless; engine thread.
#pragma once

#include <span>

#include "runtime/backend/backend.h"
#include "runtime/model/activations.h"
#include "runtime/model/model_config.h"
#include "runtime/model/weights.h"

namespace moed::model {

// What all layers' attention shares within one step.
struct AttentionStep {
  std::span<const backend::AttentionSegment> segments;
  backend::RopeSpec rope;
  int64_t tokens = 0;
};

// Adds layer `layer`'s attention to activations.residual(step.tokens), and the step's keys and
// values to `kv`.
void RunAttention(const ModelConfig& config, int layer, const AttentionWeights& weights,
                  const AttentionStep& step, const backend::KvLayer& kv,
                  const Activations& activations, backend::Backend& backend);

}  // namespace moed::model
