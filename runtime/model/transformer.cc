#include "runtime/model/transformer.h"

#include <algorithm>
#include <utility>

#include "runtime/model/mlp.h"
#include "runtime/model/rope_frequencies.h"

namespace moed::model {

using backend::Tensor;

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Create(const ModelConfig& config,
                                                                 const TransformerOptions& options,
                                                                 Weights weights,
                                                                 ExpertStore& experts,
                                                                 backend::Backend& backend) {
  auto kv_cache = KvCache::Create(config, options.num_kv_blocks, backend);
  if (!kv_cache.ok()) return kv_cache.status();
  auto activations =
      Activations::Create(config, options.max_num_batched_tokens, options.logit_rows, backend);
  if (!activations.ok()) return activations.status();
  return std::unique_ptr<Transformer>(new Transformer(config, options, std::move(weights),
                                                      *std::move(kv_cache), *std::move(activations),
                                                      experts, backend));
}

Transformer::Transformer(const ModelConfig& config, const TransformerOptions& options,
                         Weights weights, KvCache kv_cache, Activations activations,
                         ExpertStore& experts, backend::Backend& backend)
    : config_(config),
      backend_(backend),
      weights_(std::move(weights)),
      kv_cache_(std::move(kv_cache)),
      activations_(std::move(activations)),
      moe_layer_(config, options.max_num_batched_tokens, experts, backend),
      inverse_frequencies_(ComputeInverseFrequencies(config.rope)) {}

absl::Status Transformer::Forward(const StepInput& input, std::vector<ExpertShare>* shares) {
  const AttentionStep step = PrepareStep(input);
  tokens_ = step.tokens;
  backend_.BeginStep(input.token_ids, segments_);
  moe_layer_.BeginStep(input);
  backend_.Embed(weights_.embedding.view, input.token_ids, activations_.residual(tokens_));
  for (int layer = 0; layer < config_.num_layers(); ++layer) {
    RunAttention(config_, layer, weights_.layers[layer].attention, step, kv_cache_.Layer(layer),
                 activations_, backend_);
    if (absl::Status status = RunFfn(layer, tokens_); !status.ok()) return status;
  }
  shares->assign(moe_layer_.shares().begin(), moe_layer_.shares().end());
  return absl::OkStatus();
}

absl::Status Transformer::ForEachLogits(std::span<const int32_t> rows, LogitsVisitor visit) {
  const auto tile = static_cast<size_t>(activations_.logit_rows());
  for (size_t begin = 0; begin < rows.size(); begin += tile) {
    const size_t count = std::min(tile, rows.size() - begin);
    RegionCutter phase = activations_.Phase();
    const HeadActivations act = HeadActivations::Cut(config_, static_cast<int64_t>(count), &phase);
    const Tensor logits = activations_.logits(static_cast<int64_t>(count));
    backend_.GatherRows(activations_.residual(tokens_), rows.subspan(begin, count), act.rows);
    backend_.RmsNorm(act.rows, weights_.final_norm.view, config_.norm_epsilon, act.normed,
                     Tensor());
    backend_.Linear(*weights_.lm_head, act.normed, logits, /*accumulate=*/false);
    if (absl::Status status = backend_.Synchronize(); !status.ok()) return status;
    const auto width = static_cast<size_t>(config_.vocab_size);
    for (size_t row = 0; row < count; ++row) {
      visit(begin + row, {logits.As<float>() + row * width, width});
    }
  }
  return absl::OkStatus();
}

AttentionStep Transformer::PrepareStep(const StepInput& input) {
  segments_.clear();
  int row = 0;
  for (const SequenceChunk& chunk : input.chunks) {
    segments_.push_back({.first_row = row,
                         .num_tokens = chunk.num_tokens,
                         .context_start = chunk.context_start,
                         .kv_blocks = chunk.kv_blocks});
    row += chunk.num_tokens;
  }
  return {
      .segments = segments_,
      .rope = {.rotary_dims = config_.rope.rotary_dims,
               .interleaved = config_.rope.interleaved,
               .inverse_frequencies = Tensor(inverse_frequencies_.data(), backend::DType::kF32,
                                             {static_cast<int64_t>(inverse_frequencies_.size())}),
               .attention_factor = static_cast<float>(config_.rope.attention_factor)},
      .tokens = row};
}

absl::Status Transformer::RunFfn(int layer, int64_t tokens) {
  const LayerWeights& weights = weights_.layers[layer];
  if (config_.layers[layer].is_moe) return moe_layer_.Run(layer, weights, tokens, activations_);
  RegionCutter phase = activations_.Phase();
  const MlpActivations act =
      MlpActivations::Cut(config_.layers[layer].dense_intermediate, tokens, &phase);
  const Tensor normed = activations_.normed(tokens);
  const Tensor residual = activations_.residual(tokens);
  backend_.RmsNorm(residual, weights.ffn_norm.view, config_.norm_epsilon, normed, Tensor());
  RunMlp(weights.mlp, act, normed, residual, /*accumulate=*/true, backend_);
  return absl::OkStatus();
}

}  // namespace moed::model
