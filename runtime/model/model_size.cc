#include "runtime/model/model_size.h"

namespace moed::model {
namespace {

// Values of dense tensors by the type in which they are held.
struct DenseValues {
  int64_t bf16 = 0;
  int64_t f32 = 0;

  int64_t all() const { return bf16 + f32; }
  int64_t bytes() const { return 2 * bf16 + 4 * f32; }
  void operator+=(const DenseValues& other) {
    bf16 += other.bf16;
    f32 += other.f32;
  }
};

DenseValues AttentionValues(const ModelConfig& config) {
  const int64_t query_width = int64_t{config.query_heads} * config.head_dim;
  const int64_t kv_width = int64_t{config.kv_heads} * config.head_dim;
  DenseValues values;
  values.bf16 = config.hidden * (2 * query_width + 2 * kv_width);
  values.f32 = config.hidden;  // norm
  if (config.qkv_bias) values.f32 += query_width + 2 * kv_width;
  if (config.output_bias) values.f32 += config.hidden;
  if (config.qk_norm == ModelConfig::QkNorm::kPerHead) values.f32 += 2 * config.head_dim;
  if (config.qk_norm == ModelConfig::QkNorm::kFullWidth) values.f32 += query_width + kv_width;
  return values;
}

DenseValues FfnValues(const ModelConfig& config, const LayerConfig& layer) {
  DenseValues values;
  values.f32 = config.hidden;  // norm
  if (!layer.is_moe) {
    values.bf16 = 3 * config.hidden * layer.dense_intermediate;
    return values;
  }
  values.bf16 = 3 * config.hidden * config.shared_intermediate;
  values.f32 += config.hidden * config.router.num_experts;
  if (config.shared_gate) values.f32 += config.hidden;
  return values;
}

}  // namespace

ModelSize ComputeModelSize(const ModelConfig& config) {
  const int64_t table = config.vocab_size * config.hidden;
  DenseValues dense = {.bf16 = 2 * table, .f32 = config.hidden};
  ModelSize size;
  for (const LayerConfig& layer : config.layers) {
    dense += AttentionValues(config);
    dense += FfnValues(config, layer);
    if (layer.is_moe) ++size.num_moe_layers;
  }
  const int64_t expert = 3 * config.hidden * config.expert_intermediate;
  size.num_experts = int64_t{size.num_moe_layers} * config.router.num_experts;
  size.parameters = dense.all() + size.num_experts * expert - (config.tie_embeddings ? table : 0);
  size.active_parameters =
      dense.all() - table + config.hidden + expert * size.num_moe_layers * config.router.top_k;
  size.dense_bytes = dense.bytes();
  return size;
}

TokenCost ComputeTokenCost(const ModelConfig& config, int experts_used, int64_t expert_bytes) {
  const ModelSize size = ComputeModelSize(config);
  const int64_t table = config.vocab_size * config.hidden;
  const int64_t expert = 3 * config.hidden * config.expert_intermediate;
  const int64_t used = int64_t{experts_used} * size.num_moe_layers;
  const int64_t top_k = int64_t{config.router.top_k} * size.num_moe_layers;
  TokenCost cost;
  cost.parameters = size.active_parameters + (used - top_k) * expert;
  cost.flops = 2 * (cost.parameters - config.hidden);
  // Of the embedding a token reads one row, in bf16.
  cost.bytes = size.dense_bytes - 2 * (table - config.hidden) + used * expert_bytes;
  return cost;
}

}  // namespace moed::model
