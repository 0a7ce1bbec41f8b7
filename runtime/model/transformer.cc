#include "runtime/model/transformer.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "runtime/model/mlp.h"
#include "runtime/model/rope_frequencies.h"

namespace moed::model {

using backend::Tensor;

namespace {

// Returns the tokens of the step.
int64_t ListSegments(const StepInput& input, std::vector<backend::AttentionSegment>* segments) {
  segments->clear();
  int row = 0;
  for (const SequenceChunk& chunk : input.chunks) {
    segments->push_back({.first_row = row,
                         .num_tokens = chunk.num_tokens,
                         .context_start = chunk.context_start,
                         .kv_blocks = chunk.kv_blocks});
    row += chunk.num_tokens;
  }
  return row;
}

}  // namespace

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
  auto beside =
      Activations::CreateBeside(*activations, config, options.max_tokens_beside_pass, backend);
  if (!beside.ok()) return beside.status();
  std::unique_ptr<Transformer> transformer(
      new Transformer(config, options, std::move(weights), *std::move(kv_cache),
                      *std::move(activations), *std::move(beside), experts, backend));
  if (experts.device() != nullptr) {
    auto logits = backend.Allocate(DeviceLogitsBytes(config, experts.device()->max_tokens()),
                                   backend::MemoryKind::kDevice, "logits on the device");
    if (!logits.ok()) return logits.status();
    transformer->device_logits_ = *std::move(logits);
    transformer->tile_rows_.resize(
        std::min<int64_t>(options.logit_rows, experts.device()->max_tokens()));
    std::iota(transformer->tile_rows_.begin(), transformer->tile_rows_.end(), 0);
  }
  return transformer;
}

int64_t Transformer::DeviceLogitsBytes(const ModelConfig& config, int64_t rows) {
  return rows * config.vocab_size * int64_t{sizeof(float)};
}

Transformer::Transformer(const ModelConfig& config, const TransformerOptions& options,
                         Weights weights, KvCache kv_cache, Activations activations,
                         Activations beside, ExpertStore& experts, backend::Backend& backend)
    : config_(config),
      backend_(backend),
      weights_(std::move(weights)),
      kv_cache_(std::move(kv_cache)),
      max_tokens_beside_pass_(options.max_tokens_beside_pass),
      activations_(std::move(activations)),
      beside_(std::move(beside)),
      moe_layer_(config, options.max_num_batched_tokens, experts, backend, &heartbeat_),
      inverse_frequencies_(ComputeInverseFrequencies(config.rope)) {}

absl::Status Transformer::Forward(const StepInput& input) {
  tokens_ = ListSegments(input, &segments_);
  const AttentionStep step = MakeStep(segments_, tokens_);
  pass_.resumes = true;
  logits_on_device_ = moe_layer_.OnDevice(tokens_);
  if (logits_on_device_) return IssueStepOnDevice(input, step);
  const Activations& activations = StepActivations(tokens_);
  backend_.BeginStep(input.token_ids, segments_);
  if (absl::Status status = moe_layer_.BeginStep(input); !status.ok()) return status;
  backend_.Embed(weights_.embedding.view, input.token_ids, activations.residual(tokens_));
  for (int layer = 0; layer < config_.num_layers(); ++layer) {
    RunAttentionOf(layer, step, activations);
    if (!config_.layers[layer].is_moe) {
      RunDenseFfn(layer, tokens_, activations);
      continue;
    }
    absl::Status status = moe_layer_.Run(layer, weights_.layers[layer], tokens_, activations);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Transformer::EndStep(std::vector<ExpertShare>* shares) {
  // Before the cache decides what may evict experts that were read here.
  absl::Status status =
      logits_on_device_ ? moe_layer_.EndDeviceStep(tokens_) : backend_.Synchronize();
  if (!status.ok()) return status;
  shares->assign(moe_layer_.shares().begin(), moe_layer_.shares().end());
  return absl::OkStatus();
}

void Transformer::BeginPass(const StepInput& input) {
  pass_.input = &input;
  pass_.tokens = ListSegments(input, &pass_.segments);
  pass_.next_layer = 0;
  pass_.resumes = true;
  moe_layer_.BeginPass(input);
}

absl::Status Transformer::AdvancePass(int layers) {
  const AttentionStep step = MakeStep(pass_.segments, pass_.tokens);
  const std::vector<int32_t>& token_ids = pass_.input->token_ids;
  if (pass_.resumes) backend_.BeginStep(token_ids, pass_.segments);
  pass_.resumes = false;
  if (pass_.next_layer == 0) {
    backend_.Embed(weights_.embedding.view, token_ids, activations_.residual(pass_.tokens));
  }
  for (const int end = pass_.next_layer + std::min(layers, pass_layers_left());
       pass_.next_layer < end; ++pass_.next_layer) {
    const int layer = pass_.next_layer;
    RunAttentionOf(layer, step, activations_);
    if (!config_.layers[layer].is_moe) {
      RunDenseFfn(layer, pass_.tokens, activations_);
      continue;
    }
    absl::Status status =
        moe_layer_.RunPass(layer, weights_.layers[layer], pass_.tokens, activations_);
    if (!status.ok()) return status;
  }
  // Before the cache decides what may evict the experts that were read here.
  return backend_.Synchronize();
}

void Transformer::EndPass(std::vector<ExpertShare>* shares) {
  moe_layer_.EndPass();
  shares->assign(moe_layer_.pass_shares().begin(), moe_layer_.pass_shares().end());
  pass_.input = nullptr;
}

// The host does not look at the step between its first op and its last.
absl::Status Transformer::IssueStepOnDevice(const StepInput& input, AttentionStep step) {
  step.tokens = moe_layer_.PaddedTokens(tokens_);
  padded_ids_.assign(input.token_ids.begin(), input.token_ids.end());
  padded_ids_.resize(step.tokens, 0);
  if (absl::Status status = moe_layer_.BeginDeviceStep(input); !status.ok()) return status;
  backend_.BeginStep(padded_ids_, segments_);
  backend_.RunRecorded(static_cast<uint64_t>(step.tokens), [&] { IssueOnDevice(step); });
  return absl::OkStatus();
}

void Transformer::IssueOnDevice(const AttentionStep& step) {
  const int64_t rows = step.tokens;
  const Activations& activations = StepActivations(rows);
  const Tensor residual = activations.residual(rows);
  backend_.Embed(weights_.embedding.view, padded_ids_, residual);
  for (int layer = 0; layer < config_.num_layers(); ++layer) {
    RunAttentionOf(layer, step, activations);
    if (config_.layers[layer].is_moe) {
      moe_layer_.IssueOnDevice(layer, weights_.layers[layer], rows, activations);
    } else {
      RunDenseFfn(layer, rows, activations);
    }
  }
  moe_layer_.IssueEndOnDevice();
  const Tensor normed = activations.normed(rows);
  const Tensor logits(device_logits_.data(), backend::DType::kF32, {rows, config_.vocab_size});
  backend_.RmsNorm(residual, weights_.final_norm.view, config_.norm_epsilon, normed, Tensor());
  backend_.Linear(*weights_.lm_head, normed, logits, /*accumulate=*/false);
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

absl::Status Transformer::ForEachLogits(LogitsOf source, std::span<const int32_t> rows,
                                        LogitsVisitor visit) {
  const bool computed = source == LogitsOf::kStep && logits_on_device_;
  return computed ? VisitDeviceLogits(rows, visit) : VisitLogits(source, rows, visit);
}

DeviceLogits Transformer::IssueLogits(LogitsOf source, std::span<const int32_t> rows) {
  const auto tensor_of = [&](int64_t count) {
    return Tensor(device_logits_.data(), backend::DType::kF32, {count, config_.vocab_size});
  };
  if (source == LogitsOf::kStep && logits_on_device_) {
    return {.logits = tensor_of(moe_layer_.PaddedTokens(tokens_)), .rows = rows};
  }
  const size_t count = std::min(rows.size(), tile_rows_.size());
  const Tensor logits = tensor_of(static_cast<int64_t>(count));
  heartbeat_.Beat();
  IssueHead(source, rows.first(count), logits);
  return {.logits = logits, .rows = std::span(tile_rows_).first(count)};
}

void Transformer::IssueHead(LogitsOf source, std::span<const int32_t> rows, const Tensor& logits) {
  const bool of_pass = source == LogitsOf::kPass;
  const int64_t tokens = of_pass ? pass_.tokens : tokens_;
  const Activations& activations = of_pass ? activations_ : StepActivations(tokens);
  RegionCutter phase = activations.Phase();
  const HeadActivations act =
      HeadActivations::Cut(config_, static_cast<int64_t>(rows.size()), &phase);
  backend_.GatherRows(activations.residual(tokens), rows, act.rows);
  backend_.RmsNorm(act.rows, weights_.final_norm.view, config_.norm_epsilon, act.normed, Tensor());
  backend_.Linear(*weights_.lm_head, act.normed, logits, /*accumulate=*/false);
}

absl::Status Transformer::VisitLogits(LogitsOf source, std::span<const int32_t> rows,
                                      LogitsVisitor visit) {
  const auto tile = static_cast<size_t>(activations_.logit_rows());
  for (size_t begin = 0; begin < rows.size(); begin += tile) {
    const size_t count = std::min(tile, rows.size() - begin);
    const Tensor logits = activations_.logits(static_cast<int64_t>(count));
    IssueHead(source, rows.subspan(begin, count), logits);
    if (absl::Status status = backend_.Synchronize(); !status.ok()) return status;
    heartbeat_.Beat();
    const auto width = static_cast<size_t>(config_.vocab_size);
    for (size_t row = 0; row < count; ++row) {
      visit(begin + row, {logits.As<float>() + row * width, width});
    }
  }
  return absl::OkStatus();
}

AttentionStep Transformer::MakeStep(std::span<const backend::AttentionSegment> segments,
                                    int64_t tokens) {
  return {
      .segments = segments,
      .rope = {.rotary_dims = config_.rope.rotary_dims,
               .interleaved = config_.rope.interleaved,
               .inverse_frequencies = Tensor(inverse_frequencies_.data(), backend::DType::kF32,
                                             {static_cast<int64_t>(inverse_frequencies_.size())}),
               .attention_factor = static_cast<float>(config_.rope.attention_factor)},
      .tokens = tokens};
}

void Transformer::RunAttentionOf(int layer, const AttentionStep& step,
                                 const Activations& activations) {
  heartbeat_.Beat();
  RunAttention(config_, layer, weights_.layers[layer].attention, step, kv_cache_.Layer(layer),
               activations, backend_);
}

void Transformer::RunDenseFfn(int layer, int64_t tokens, const Activations& activations) {
  const LayerWeights& weights = weights_.layers[layer];
  RegionCutter phase = activations.Phase();
  const MlpActivations act =
      MlpActivations::Cut(config_.layers[layer].dense_intermediate, tokens, &phase);
  const Tensor normed = activations.normed(tokens);
  const Tensor residual = activations.residual(tokens);
  backend_.RmsNorm(residual, weights.ffn_norm.view, config_.norm_epsilon, normed, Tensor());
  RunMlp(weights.mlp, act, normed, residual, /*accumulate=*/true, backend_);
}

}  // namespace moed::model
