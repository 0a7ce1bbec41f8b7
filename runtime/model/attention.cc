#include "runtime/model/attention.h"

#include <cmath>

namespace moed::model {
namespace {

backend::AttentionSpec AttentionSpecOf(const ModelConfig& config, int layer) {
  return {.query_heads = config.query_heads,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
          .sliding_window = config.layers[layer].sliding_window};
}

backend::QkPrepare QkPrepareOf(const ModelConfig& config, const AttentionWeights& weights,
                               const backend::RopeSpec& rope) {
  return {.q_norm = weights.query_norm.view,
          .k_norm = weights.key_norm.view,
          .norm_per_head = config.qk_norm == ModelConfig::QkNorm::kPerHead,
          .norm_epsilon = config.norm_epsilon,
          .clip_qkv = config.clip_qkv,
          .rope = rope};
}

}  // namespace

void RunAttention(const ModelConfig& config, int layer, const AttentionWeights& weights,
                  const AttentionStep& step, const backend::KvLayer& kv,
                  const Activations& activations, backend::Backend& backend) {
  RegionCutter phase = activations.Phase();
  const AttentionActivations act = AttentionActivations::Cut(config, step.tokens, &phase);
  const backend::Tensor residual = activations.residual(step.tokens);
  const backend::Tensor normed = activations.normed(step.tokens);
  const backend::AttentionSpec spec = AttentionSpecOf(config, layer);

  const backend::LinearProduct products[] = {{weights.query.get(), act.query},
                                             {weights.key.get(), act.key},
                                             {weights.value.get(), act.value}};
  const backend::QkPrepare prepare = QkPrepareOf(config, weights, step.rope);
  if (backend.FusedAttention({.norm_weight = weights.norm.view,
                              .norm_epsilon = config.norm_epsilon,
                              .qkv = products,
                              .prepare = prepare,
                              .spec = spec,
                              .cache = kv,
                              .output = weights.output.get(),
                              .residual = residual})) {
    return;
  }
  backend.NormLinearGroup(residual, weights.norm.view, config.norm_epsilon, normed, products);
  backend.PrepareAndAttend(prepare, spec, step.segments, act.query, act.key, act.value, kv,
                           act.output);
  backend.Linear(*weights.output, act.output, residual, /*accumulate=*/true);
}

}  // namespace moed::model
