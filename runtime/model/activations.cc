#include "runtime/model/activations.h"

#include <algorithm>
#include <utility>

namespace moed::model {

using backend::DType;
using backend::MemoryKind;
using backend::Tensor;

namespace {

constexpr int64_t kAlignmentBytes = 64;

int64_t RoundUp(int64_t bytes) {
  return (bytes + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
}

// Bytes of the phase that needs most.
int64_t PhaseBytes(const ModelConfig& config, int64_t max_tokens, int64_t logit_rows) {
  RegionCutter attention(nullptr), moe(nullptr), mlp(nullptr), head(nullptr);
  AttentionActivations::Cut(config, max_tokens, &attention);
  MoeActivations::Cut(config, max_tokens, &moe);
  HeadActivations::Cut(config, logit_rows, &head);
  int64_t dense_intermediate = 0;
  for (const LayerConfig& layer : config.layers) {
    dense_intermediate = std::max(dense_intermediate, layer.dense_intermediate);
  }
  MlpActivations::Cut(dense_intermediate, max_tokens, &mlp);
  return std::max({attention.bytes(), moe.bytes(), mlp.bytes(), head.bytes()});
}

}  // namespace

Tensor RegionCutter::Cut(DType dtype, std::initializer_list<int64_t> shape) {
  const Tensor tensor(base_ == nullptr ? nullptr : base_ + bytes_, dtype, shape);
  bytes_ += RoundUp(tensor.num_bytes());
  return tensor;
}

AttentionActivations AttentionActivations::Cut(const ModelConfig& config, int64_t tokens,
                                               RegionCutter* region) {
  const int64_t query_width = int64_t{config.query_heads} * config.head_dim;
  const int64_t kv_width = int64_t{config.kv_heads} * config.head_dim;
  return {.query = region->Cut(DType::kF32, {tokens, query_width}),
          .key = region->Cut(DType::kF32, {tokens, kv_width}),
          .value = region->Cut(DType::kF32, {tokens, kv_width}),
          .output = region->Cut(DType::kBF16, {tokens, query_width})};
}

MlpActivations MlpActivations::Cut(int64_t intermediate, int64_t tokens, RegionCutter* region) {
  return {.gate_up = region->Cut(DType::kF32, {tokens, 2 * intermediate}),
          .activated = region->Cut(DType::kBF16, {tokens, intermediate})};
}

MoeActivations MoeActivations::Cut(const ModelConfig& config, int64_t tokens,
                                   RegionCutter* region) {
  const int64_t top_k = config.router.top_k;
  MoeActivations cut;
  cut.router_input = region->Cut(DType::kF32, {tokens, config.hidden});
  cut.router_logits = region->Cut(DType::kF32, {tokens, config.router.num_experts});
  cut.weights = region->Cut(DType::kF32, {tokens, top_k});
  RegionCutter shared = *region;
  cut.expert_output = region->Cut(DType::kF32, {tokens * top_k, config.hidden});
  if (config.shared_intermediate > 0) {
    if (config.shared_gate) cut.shared_gate = shared.Cut(DType::kF32, {tokens, 1});
    cut.shared_output = shared.Cut(DType::kF32, {tokens, config.hidden});
    cut.shared = MlpActivations::Cut(config.shared_intermediate, tokens, &shared);
    if (shared.bytes() > region->bytes()) *region = shared;
  }
  return cut;
}

HeadActivations HeadActivations::Cut(const ModelConfig& config, int64_t rows,
                                     RegionCutter* region) {
  return {.rows = region->Cut(DType::kF32, {rows, config.hidden}),
          .normed = region->Cut(DType::kBF16, {rows, config.hidden})};
}

absl::StatusOr<Activations> Activations::Create(const ModelConfig& config, int64_t max_tokens,
                                                int64_t logit_rows, backend::Backend& backend) {
  Activations activations;
  RegionCutter device_size(nullptr), host_size(nullptr);
  activations.CutDevice(config, max_tokens, &device_size);
  activations.CutHost(config, max_tokens, logit_rows, &host_size);
  const int64_t device_bytes = device_size.bytes() + PhaseBytes(config, max_tokens, logit_rows);
  auto device = backend.Allocate(device_bytes, MemoryKind::kDevice, "activations");
  if (!device.ok()) return device.status();
  auto host = backend.Allocate(host_size.bytes(), MemoryKind::kHost, "logits");
  if (!host.ok()) return host.status();

  RegionCutter device_region(device->data()), host_region(host->data());
  activations.CutDevice(config, max_tokens, &device_region);
  activations.CutHost(config, max_tokens, logit_rows, &host_region);
  activations.phase_base_ = device->data() + device_region.bytes();
  activations.device_ = *std::move(device);
  activations.host_ = *std::move(host);
  return activations;
}

int64_t Activations::Bytes(const ModelConfig& config, int64_t max_tokens, int64_t logit_rows) {
  Activations activations;
  RegionCutter region(nullptr);
  activations.CutDevice(config, max_tokens, &region);
  activations.CutHost(config, max_tokens, logit_rows, &region);
  return region.bytes() + PhaseBytes(config, max_tokens, logit_rows);
}

absl::StatusOr<Activations> Activations::CreateBeside(const Activations& base,
                                                      const ModelConfig& config, int64_t max_tokens,
                                                      backend::Backend& backend) {
  auto device = backend.Allocate(BesideBytes(config, max_tokens), MemoryKind::kDevice,
                                 "activations of steps beside a prefill");
  if (!device.ok()) return device.status();
  Activations activations;
  RegionCutter region(device->data());
  activations.residual_ = region.Cut(DType::kF32, {max_tokens, config.hidden});
  activations.normed_ = base.normed_;
  activations.expert_ids_ = base.expert_ids_;
  activations.logits_ = base.logits_;
  activations.phase_base_ = base.phase_base_;
  activations.device_ = *std::move(device);
  return activations;
}

int64_t Activations::BesideBytes(const ModelConfig& config, int64_t max_tokens) {
  RegionCutter region(nullptr);
  region.Cut(DType::kF32, {max_tokens, config.hidden});
  return region.bytes();
}

void Activations::CutDevice(const ModelConfig& config, int64_t max_tokens, RegionCutter* region) {
  residual_ = region->Cut(DType::kF32, {max_tokens, config.hidden});
  normed_ = region->Cut(DType::kBF16, {max_tokens, config.hidden});
}

void Activations::CutHost(const ModelConfig& config, int64_t max_tokens, int64_t logit_rows,
                          RegionCutter* region) {
  expert_ids_ = region->Cut(DType::kI32, {max_tokens, config.router.top_k});
  logits_ = region->Cut(DType::kF32, {logit_rows, config.vocab_size});
}

}  // namespace moed::model
