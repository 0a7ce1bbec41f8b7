// The decoder: embedding, layers of attention and MoE (or dense MLP), final norm, lm_head. Weights
// are immutable, all mutable state is its own and is taken once: KV cache, activations. Owned by
// the model runner; engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/model/activations.h"
#include "runtime/model/attention.h"
#include "runtime/model/expert_store.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/model_config.h"
#include "runtime/model/moe_layer.h"
#include "runtime/model/step.h"
#include "runtime/model/weights.h"

namespace moed::model {

struct TransformerOptions {
  int64_t max_num_batched_tokens = 0;
  int num_kv_blocks = 0;
  int64_t logit_rows = 0;  // rows of lm_head at a time
};

class Transformer {
 public:
  // `config`, `experts` and `backend` must outlive it. RESOURCE_EXHAUSTED: no memory.
  static absl::StatusOr<std::unique_ptr<Transformer>> Create(const ModelConfig& config,
                                                             const TransformerOptions& options,
                                                             Weights weights, ExpertStore& experts,
                                                             backend::Backend& backend);

  // What device-driven steps of up to `rows` tokens take beside the activations.
  static int64_t DeviceLogitsBytes(const ModelConfig& config, int64_t rows);

  // Runs all layers over the tokens of `input`, at most max_num_batched_tokens, and fills the KV
  // cache with them. `shares` gets each chunk's part of the expert traffic.
  absl::Status Forward(const StepInput& input, std::vector<ExpertShare>* shares);

  // Calls `visit` with the logits [V] of each of `rows`, rows of the last Forward's input, and its
  // index in `rows`. The logits are gone after the call.
  using LogitsVisitor = absl::FunctionRef<void(size_t index, std::span<const float> logits)>;
  absl::Status ForEachLogits(std::span<const int32_t> rows, LogitsVisitor visit);

 private:
  Transformer(const ModelConfig& config, const TransformerOptions& options, Weights weights,
              KvCache kv_cache, Activations activations, ExpertStore& experts,
              backend::Backend& backend);

  AttentionStep PrepareStep(const StepInput& input);
  absl::Status ForwardOnDevice(const StepInput& input, AttentionStep step);
  void IssueOnDevice(const AttentionStep& step);
  absl::Status RunFfn(int layer, int64_t tokens);
  void RunDenseFfn(int layer, int64_t tokens);
  absl::Status VisitDeviceLogits(std::span<const int32_t> rows, LogitsVisitor visit);

  const ModelConfig& config_;
  backend::Backend& backend_;
  Weights weights_;
  KvCache kv_cache_;
  Activations activations_;
  MoeLayer moe_layer_;
  std::vector<float> inverse_frequencies_;  // [rotary_dims / 2]
  std::vector<backend::AttentionSegment> segments_;
  int64_t tokens_ = 0;  // of the last Forward
  // Device-driven: logits of all rows of a step [rows, V], on the device.
  backend::Buffer device_logits_;
  bool logits_on_device_ = false;    // of the last Forward
  std::vector<int32_t> padded_ids_;  // its token ids and padding
};

}  // namespace moed::model
