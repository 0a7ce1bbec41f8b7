#include "tests/runtime/backend/cuda/expert_layers.h"

#include <algorithm>
#include <random>
#include <span>

#include "gtest/gtest.h"
#include "runtime/backend/bf12.h"

namespace moed::backend {

ExpertFormat FormatOf(ExpertFormatKind kind, const ExpertShape& shape) {
  const int escapes = kind == ExpertFormatKind::kBF12 ? Bf12TileEscapeCapacity(200) : 0;
  return ExpertFormat(kind, shape.first, shape.second, escapes);
}

ExpertLayers::ExpertLayers(Backend& backend, const ExpertFormat& format, ColdPath cold_path,
                           int timeout_ms)
    : backend_(backend),
      format_(format),
      bf16_(ExpertFormatKind::kBF16, format.hidden(), format.intermediate()),
      blob_bytes_(format.blob_bytes()) {
  host_ = Allocate(kLayers * kExperts * blob_bytes_, MemoryKind::kHost);
  slots_ = Allocate(kSlots * blob_bytes_, MemoryKind::kDevice);
  FillExperts();
  experts_ = backend
                 .CreateDeviceExperts({.format = format,
                                       .experts_per_layer = {kExperts, kExperts},
                                       .top_k = kTopK,
                                       .max_tokens = kMaxTokens,
                                       .num_slots = kSlots,
                                       .host_experts = host_.data(),
                                       .slots = slots_.data(),
                                       .cold_path = cold_path,
                                       .cold_timeout_ms = timeout_ms})
                 .value();
}

Buffer ExpertLayers::Allocate(size_t bytes, MemoryKind kind) {
  return backend_.Allocate(bytes, kind, "a test").value();
}

template <typename T>
void ExpertLayers::Write(const std::vector<T>& values, std::byte* memory) {
  EXPECT_TRUE(backend_.CopyFromHost(std::as_bytes(std::span(values)), memory).ok());
}

template <typename T>
Buffer ExpertLayers::Put(const std::vector<T>& values) {
  Buffer memory = Allocate(values.size() * sizeof(T), MemoryKind::kDevice);
  Write(values, memory.data());
  return memory;
}

std::vector<float> ExpertLayers::Get(const Buffer& memory, size_t count) {
  std::vector<float> values(count);
  EXPECT_TRUE(backend_.CopyToHost(memory.data(), std::as_writable_bytes(std::span(values))).ok());
  return values;
}

std::vector<float> ExpertLayers::RunStep(int layer, const std::vector<int32_t>& ids) {
  EXPECT_TRUE(experts_->BeginStep(static_cast<int64_t>(ids.size()) / kTopK).ok());
  std::vector<float> sums = Run(layer, ids);
  const absl::Status ended = experts_->EndStep();
  EXPECT_TRUE(ended.ok()) << ended;
  return sums;
}

std::vector<float> ExpertLayers::Run(int layer, const std::vector<int32_t>& ids) {
  const auto tokens = static_cast<int>(ids.size()) / kTopK;
  const auto rows = experts_->PaddedTokens(tokens);
  const std::vector<int32_t> blocks = {0, 1};
  const AttentionSegment segment = {0, tokens, 0, blocks};
  const std::vector<int32_t> token_ids(rows);
  backend_.BeginStep(token_ids, {&segment, 1});
  std::mt19937 random(static_cast<uint32_t>(tokens));
  std::vector<BFloat16> x(rows * format_.hidden());
  for (BFloat16& value : x) value = ToBFloat16(static_cast<float>(random() % 200) / 100 - 1);
  // Apart from x, whose padding differs between backends.
  random.seed(static_cast<uint32_t>(tokens) + 1);
  std::vector<float> weights(rows * kTopK);
  for (float& value : weights) value = static_cast<float>(random() % 100) / 100;
  Write(ids, experts_->ids(layer, rows).As<std::byte>());
  const Buffer x_memory = Put(x);
  const Buffer weights_memory = Put(weights);
  const Buffer residual = Put(std::vector<float>(x.size()));
  experts_->Run(layer, Tensor(weights_memory.data(), DType::kF32, {rows, kTopK}),
                Tensor(x_memory.data(), DType::kBF16, {rows, format_.hidden()}),
                Tensor(residual.data(), DType::kF32, {rows, format_.hidden()}));
  experts_->FinishStep();
  EXPECT_TRUE(backend_.Synchronize().ok());
  std::vector<float> sums(tokens * format_.hidden());
  EXPECT_TRUE(backend_.CopyToHost(residual.data(), std::as_writable_bytes(std::span(sums))).ok());
  return sums;
}

ExpertLayers::Routed ExpertLayers::RunRoutedStep(int layer, const RouterSpec& spec, int tokens,
                                                 uint32_t seed) {
  EXPECT_TRUE(experts_->BeginStep(tokens).ok());
  Routed routed = RouteAndRun(layer, spec, tokens, seed);
  const absl::Status ended = experts_->EndStep();
  EXPECT_TRUE(ended.ok()) << ended;
  return routed;
}

ExpertLayers::Routed ExpertLayers::RouteAndRun(int layer, const RouterSpec& spec, int tokens,
                                               uint32_t seed) {
  const int64_t rows = experts_->PaddedTokens(tokens);
  const int64_t hidden = format_.hidden();
  const std::vector<int32_t> blocks = {0, 1};
  const AttentionSegment segment = {0, tokens, 0, blocks};
  const std::vector<int32_t> token_ids(rows);
  backend_.BeginStep(token_ids, {&segment, 1});
  std::mt19937 random(seed);
  std::vector<float> router(kExperts * hidden), norm(hidden, 1.0f), x(rows * hidden, 1.0f);
  for (float& value : router) value = static_cast<float>(random() % 200) / 1000 - 0.1f;
  for (int64_t i = 0; i < tokens * hidden; ++i) {
    x[i] = static_cast<float>(random() % 200) / 100 - 1;
  }
  const Buffer router_memory = Put(router), norm_memory = Put(norm), residual = Put(x);
  const Buffer normed = Put(std::vector<BFloat16>(x.size())), normed_f32 = Put(x);
  const Buffer logits = Put(std::vector<float>(rows * kExperts));
  const Buffer weights = Put(std::vector<float>(rows * kTopK));
  const Tensor residual_tensor(residual.data(), DType::kF32, {rows, hidden});
  const Tensor normed_tensor(normed.data(), DType::kBF16, {rows, hidden});
  const Tensor weights_tensor(weights.data(), DType::kF32, {rows, kTopK});
  experts_->Route(layer, {.spec = spec,
                          .x = residual_tensor,
                          .norm_weight = Tensor(norm_memory.data(), DType::kF32, {hidden}),
                          .norm_epsilon = 1e-6f,
                          .router = Tensor(router_memory.data(), DType::kF32, {kExperts, hidden}),
                          .normed = normed_tensor,
                          .normed_f32 = Tensor(normed_f32.data(), DType::kF32, {rows, hidden}),
                          .logits = Tensor(logits.data(), DType::kF32, {rows, kExperts}),
                          .ids = experts_->ids(layer, rows),
                          .weights = weights_tensor});
  experts_->Run(layer, weights_tensor, normed_tensor, residual_tensor);
  experts_->FinishStep();
  EXPECT_TRUE(backend_.Synchronize().ok());
  const std::span<const int32_t> ids = experts_->StepIds(layer, tokens);
  Routed routed = {
      {ids.begin(), ids.end()}, Get(weights, tokens * kTopK), Get(residual, tokens * hidden)};
  for (int64_t i = 0; i < tokens * hidden; ++i) routed.sums[i] -= x[i];
  return routed;
}

bool ExpertLayers::Holds(int slot, int layer, int expert) {
  std::vector<std::byte> content(blob_bytes_);
  EXPECT_TRUE(backend_.CopyToHost(slots_.data() + slot * blob_bytes_, content).ok());
  return Values(content.data()) == Values(host_.data() + (layer * kExperts + expert) * blob_bytes_);
}

std::vector<BFloat16> ExpertLayers::Values(const std::byte* blob) const {
  const int64_t hidden = format_.hidden();
  const int64_t width = format_.row_values();
  std::vector<BFloat16> values;
  std::vector<BFloat16> row(width);
  for (const ExpertPart part : {ExpertPart::kGate, ExpertPart::kUp, ExpertPart::kDown}) {
    for (int64_t i = 0; i < format_.intermediate(); ++i) {
      if (format_.kind() == ExpertFormatKind::kBF12) {
        DecodeBf12(format_, blob, part, i, 1, 0, width, row.data(), width);
      } else {
        const auto* neuron = reinterpret_cast<const BFloat16*>(blob + format_.neuron_offset(i));
        std::copy_n(neuron + static_cast<int>(part) * width, width, row.begin());
      }
      values.insert(values.end(), row.begin(), row.begin() + hidden);
    }
  }
  return values;
}

void ExpertLayers::FillExperts() {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 0.06f);
  std::vector<std::byte> blob(bf16_.blob_bytes());
  for (int i = 0; i < kLayers * kExperts; ++i) {
    auto* values = reinterpret_cast<BFloat16*>(blob.data());
    for (size_t v = 0; v < blob.size() / 2; ++v) {
      const float outlier = random() % 2 == 0 ? 30.0f : 1e-9f;
      values[v] = ToBFloat16(random() % 2000 == 0 ? outlier : normal(random));
    }
    // A neuron with more escapes than its header has room for.
    for (int v = 0; v < 30; ++v) values[v * bf16_.hidden() / 30] = 0;
    std::byte* const target = host_.data() + i * blob_bytes_;
    if (format_.kind() == ExpertFormatKind::kBF16) {
      std::copy(blob.begin(), blob.end(), target);
    } else {
      EXPECT_TRUE(EncodeBf12(bf16_, blob, format_, {target, blob_bytes_}));
    }
  }
}

}  // namespace moed::backend
