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
  std::unique_ptr<Transformer> transformer(
      new Transformer(config, options, std::move(weights), *std::move(kv_cache),
                      *std::move(activations), experts, backend));
  if (experts.device() != nullptr) {
    auto logits = backend.Allocate(DeviceLogitsBytes(config, experts.device()->max_tokens()),
                                   backend::MemoryKind::kDevice, "logits on the device");
    if (!logits.ok()) return logits.status();
    transformer->device_logits_ = *std::move(logits);
  }
  return transformer;
}

int64_t Transformer::DeviceLogitsBytes(const ModelConfig& config, int64_t rows) {
  return rows * config.vocab_size * int64_t{sizeof(float)};
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
  logits_on_device_ = moe_layer_.OnDevice(tokens_);
  if (logits_on_device_) {
    absl::Status status = ForwardOnDevice(input, step);
    shares->assign(moe_layer_.shares().begin(), moe_layer_.shares().end());
    return status;
  }
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

// The host does not look at the step between its first op and its last.
absl::Status Transformer::ForwardOnDevice(const StepInput& input, AttentionStep step) {
  step.tokens = moe_layer_.PaddedTokens(tokens_);
  padded_ids_.assign(input.token_ids.begin(), input.token_ids.end());
  padded_ids_.resize(step.tokens, 0);
  if (absl::Status status = moe_layer_.BeginDeviceStep(input); !status.ok()) return status;
  backend_.BeginStep(padded_ids_, segments_);
  backend_.RunRecorded(static_cast<uint64_t>(step.tokens), [&] { IssueOnDevice(step); });
  if (absl::Status status = backend_.Synchronize(); !status.ok()) return status;
  return moe_layer_.EndDeviceStep(tokens_);
}

void Transformer::IssueOnDevice(const AttentionStep& step) {
  const int64_t rows = step.tokens;
  const Tensor residual = activations_.residual(rows);
  backend_.Embed(weights_.embedding.view, padded_ids_, residual);
  for (int layer = 0; layer < config_.num_layers(); ++layer) {
    RunAttention(config_, layer, weights_.layers[layer].attention, step, kv_cache_.Layer(layer),
                 activations_, backend_);
    if (config_.layers[layer].is_moe) {
      moe_layer_.IssueOnDevice(layer, weights_.layers[layer], rows, activations_);
    } else {
      RunDenseFfn(layer, rows);
    }
  }
  const Tensor normed = activations_.normed(rows);
  const Tensor logits(device_logits_.data(), backend::DType::kF32, {rows, config_.vocab_size});
  backend_.RmsNorm(residual, weights_.final_norm.view, config_.norm_epsilon, normed, Tensor());
  backend_.Linear(*weights_.lm_head, normed, logits, /*accumulate=*/false);
  moe_layer_.IssueEndOnDevice();
}

absl::Status Transformer::VisitDeviceLogits(std::span<const int32_t> rows, LogitsVisitor visit) {
  const auto width = static_cast<size_t>(config_.vocab_size);
  const auto tile = static_cast<size_t>(activations_.logit_rows());
  const Tensor host = activations_.logits(activations_.logit_rows());
  // Rows that follow one another come in one copy.
  for (size_t begin = 0, count = 0; begin < rows.size(); begin += count) {
    for (count = 1; count < tile && begin + count < rows.size(); ++count) {
      if (rows[begin + count] != rows[begin] + static_cast<int32_t>(count)) break;
    }
    const std::byte* source = device_logits_.data() + rows[begin] * width * sizeof(float);
    absl::Status status =
        backend_.CopyToHost(source, {host.As<std::byte>(), count * width * sizeof(float)});
    if (!status.ok()) return status;
    for (size_t row = 0; row < count; ++row) {
      visit(begin + row, {host.As<float>() + row * width, width});
    }
  }
  return absl::OkStatus();
}

absl::Status Transformer::ForEachLogits(std::span<const int32_t> rows, LogitsVisitor visit) {
  if (logits_on_device_) return VisitDeviceLogits(rows, visit);
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
  if (config_.layers[layer].is_moe) {
    return moe_layer_.Run(layer, weights_.layers[layer], tokens, activations_);
  }
  RunDenseFfn(layer, tokens);
  return absl::OkStatus();
}

void Transformer::RunDenseFfn(int layer, int64_t tokens) {
  const LayerWeights& weights = weights_.layers[layer];
  RegionCutter phase = activations_.Phase();
  const MlpActivations act =
      MlpActivations::Cut(config_.layers[layer].dense_intermediate, tokens, &phase);
  const Tensor normed = activations_.normed(tokens);
  const Tensor residual = activations_.residual(tokens);
  backend_.RmsNorm(residual, weights.ffn_norm.view, config_.norm_epsilon, normed, Tensor());
  RunMlp(weights.mlp, act, normed, residual, /*accumulate=*/true, backend_);
}

}  // namespace moed::model
