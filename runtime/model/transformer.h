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
#include "runtime/model/heartbeat.h"
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
  // Of the largest step that runs beside a pass; at most max_num_batched_tokens.
  int64_t max_tokens_beside_pass = 0;
};

// Whose logits: of the last Forward's input, or of the pass's.
enum class LogitsOf : uint8_t { kStep, kPass };

// Logits in the device's memory, until others are issued: those of the first rows.size() of the
// rows that were asked for, in order.
struct DeviceLogits {
  backend::Tensor logits;         // [any, V] f32
  std::span<const int32_t> rows;  // where each lies in `logits`
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

  // Runs all layers over the tokens of `input`, at most max_num_batched_tokens (beside a pass
  // max_tokens_beside_pass), and fills the KV cache with them. What runs on a device may still be
  // under way until EndStep, which comes next but for what reads or samples logits; and the logits
  // even then, until Synchronize.
  absl::Status Forward(const StepInput& input);
  // Whether Forward only issues a step of `tokens`.
  bool OnDevice(int64_t tokens) const { return moe_layer_.OnDevice(tokens); }
  // `shares` gets each chunk's part of the expert traffic. What was made of the logits is worthless
  // if this fails.
  absl::Status EndStep(std::vector<ExpertShare>* shares);
  // The cache follows the last device-driven step that ended. At best between the next step's
  // Forward and EndStep, while the device computes; whatever comes first does it else. INTERNAL,
  // then and for ever: the device broke the protocol.
  absl::Status FollowLastStep() { return moe_layer_.FollowLastStep(); }

  // Calls `visit` with the logits [V] of each of `rows`, rows of the step's or the pass's input,
  // and its index in `rows`. The logits are gone after the call.
  using LogitsVisitor = absl::FunctionRef<void(size_t index, std::span<const float> logits)>;
  absl::Status ForEachLogits(LogitsOf source, std::span<const int32_t> rows, LogitsVisitor visit);

  // Issues the logits of the first of `rows`, as many as there is room for, but does not wait: for
  // ops to read. Only if steps are device-driven.
  DeviceLogits IssueLogits(LogitsOf source, std::span<const int32_t> rows);

  // A pass is a Forward in slices of a few layers, with other Forwards between them. It is
  // host-driven whatever its size. `input` must stay until the pass ends.
  void BeginPass(const StepInput& input);
  // The next `layers` layers, or as many as are left; they have ended when it returns.
  absl::Status AdvancePass(int layers);
  int pass_layers_left() const { return config_.num_layers() - pass_.next_layer; }
  // Once no layer is left, ForEachLogits and IssueLogits give those of the pass. Whether or not all
  // layers have run: the shares are those of the ones that have.
  void EndPass(std::vector<ExpertShare>* shares);

  // StepRunner::progress: a layer, a group of experts, a tile of logits. Any thread.
  int64_t progress() const { return heartbeat_.beats(); }

 private:
  struct Pass {
    const StepInput* input = nullptr;  // null: there is no pass
    std::vector<backend::AttentionSegment> segments;
    int64_t tokens = 0;
    int next_layer = 0;
    bool resumes = false;  // another step has run since the last slice
  };

  Transformer(const ModelConfig& config, const TransformerOptions& options, Weights weights,
              KvCache kv_cache, Activations activations, Activations beside, ExpertStore& experts,
              backend::Backend& backend);

  // Of a step that is no pass.
  const Activations& StepActivations(int64_t tokens) const {
    return tokens <= max_tokens_beside_pass_ ? beside_ : activations_;
  }
  AttentionStep MakeStep(std::span<const backend::AttentionSegment> segments, int64_t tokens);
  absl::Status IssueStepOnDevice(const StepInput& input, AttentionStep step);
  void IssueOnDevice(const AttentionStep& step);
  void RunAttentionOf(int layer, const AttentionStep& step, const Activations& activations);
  void RunDenseFfn(int layer, int64_t tokens, const Activations& activations);
  // The final norm and lm_head on `rows` of the residual.
  void IssueHead(LogitsOf source, std::span<const int32_t> rows, const backend::Tensor& logits);
  absl::Status VisitLogits(LogitsOf source, std::span<const int32_t> rows, LogitsVisitor visit);
  absl::Status VisitDeviceLogits(std::span<const int32_t> rows, LogitsVisitor visit);

  const ModelConfig& config_;
  backend::Backend& backend_;
  Weights weights_;
  KvCache kv_cache_;
  Heartbeat heartbeat_;
  int64_t max_tokens_beside_pass_;
  // Passes and steps too large to run beside one.
  Activations activations_;
  Activations beside_;
  MoeLayer moe_layer_;
  std::vector<float> inverse_frequencies_;  // [rotary_dims / 2]
  std::vector<backend::AttentionSegment> segments_;
  int64_t tokens_ = 0;  // of the last Forward
  // Device-driven: logits of all rows of a step [rows, V], on the device.
  backend::Buffer device_logits_;
  bool logits_on_device_ = false;    // of the last Forward
  std::vector<int32_t> tile_rows_;   // 0, 1, ...: where IssueHead puts rows in device_logits_
  std::vector<int32_t> padded_ids_;  // its token ids and padding
  Pass pass_;
};

}  // namespace moed::model
