#include "runtime/model/dense_shape.h"

namespace moed::model {
namespace {

using Shape = std::optional<std::vector<int64_t>>;

Shape If(bool present, std::vector<int64_t> shape) {
  if (!present) return std::nullopt;
  return shape;
}

// The weight of a norm over heads, each or together.
Shape QkNormShape(const ModelConfig& config, int64_t heads) {
  switch (config.qk_norm) {
    case ModelConfig::QkNorm::kNone:
      return std::nullopt;
    case ModelConfig::QkNorm::kPerHead:
      return {{config.head_dim}};
    case ModelConfig::QkNorm::kFullWidth:
      return {{heads * config.head_dim}};
  }
  return std::nullopt;
}

Shape AttentionShape(const ModelConfig& config, DenseRole role) {
  const int64_t hidden = config.hidden;
  const int64_t query_width = int64_t{config.query_heads} * config.head_dim;
  const int64_t kv_width = int64_t{config.kv_heads} * config.head_dim;
  switch (role) {
    case DenseRole::kQuery:
      return {{query_width, hidden}};
    case DenseRole::kKey:
    case DenseRole::kValue:
      return {{kv_width, hidden}};
    case DenseRole::kOutput:
      return {{hidden, query_width}};
    case DenseRole::kQueryBias:
      return If(config.qkv_bias, {query_width});
    case DenseRole::kKeyBias:
    case DenseRole::kValueBias:
      return If(config.qkv_bias, {kv_width});
    case DenseRole::kOutputBias:
      return If(config.output_bias, {hidden});
    case DenseRole::kQueryNorm:
      return QkNormShape(config, config.query_heads);
    case DenseRole::kKeyNorm:
      return QkNormShape(config, config.kv_heads);
    default:
      return std::nullopt;
  }
}

Shape FeedForwardShape(const ModelConfig& config, DenseRole role, const LayerConfig& layer) {
  const int64_t hidden = config.hidden;
  const int64_t dense = layer.dense_intermediate;
  const int64_t shared = config.shared_intermediate;
  const bool has_shared = layer.is_moe && shared > 0;
  switch (role) {
    case DenseRole::kRouter:
      return If(layer.is_moe, {config.router.num_experts, hidden});
    case DenseRole::kMlpGate:
    case DenseRole::kMlpUp:
      return If(!layer.is_moe, {dense, hidden});
    case DenseRole::kMlpDown:
      return If(!layer.is_moe, {hidden, dense});
    case DenseRole::kSharedGate:
    case DenseRole::kSharedUp:
      return If(has_shared, {shared, hidden});
    case DenseRole::kSharedDown:
      return If(has_shared, {hidden, shared});
    case DenseRole::kSharedExpertGate:
      return If(has_shared && config.shared_gate, {1, hidden});
    default:
      return std::nullopt;
  }
}

}  // namespace

Shape DenseShape(const ModelConfig& config, DenseRole role, int layer) {
  switch (role) {
    case DenseRole::kEmbedding:
      return {{config.vocab_size, config.hidden}};
    case DenseRole::kLmHead:
      return If(!config.tie_embeddings, {config.vocab_size, config.hidden});
    case DenseRole::kFinalNorm:
    case DenseRole::kAttentionNorm:
    case DenseRole::kFfnNorm:
      return {{config.hidden}};
    default: {
      Shape shape = AttentionShape(config, role);
      return shape.has_value() ? shape : FeedForwardShape(config, role, config.layers[layer]);
    }
  }
}

backend::Tensor DenseView(void* data, backend::DType dtype, const std::vector<int64_t>& shape) {
  if (shape.size() == 1) return backend::Tensor(data, dtype, {shape[0]});
  return backend::Tensor(data, dtype, {shape[0], shape[1]});
}

}  // namespace moed::model
