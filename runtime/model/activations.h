// The memory of a step's intermediate results, taken once for the largest step. What lives through
// a layer has its own place; what lives through one phase of a layer (attention, MoE, MLP, head)
// shares one region with the other phases. Owned by the transformer; engine thread only.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/model/model_config.h"

namespace moed::model {

// Cuts tensors one after another from a region, each at a multiple of 64 bytes.
class RegionCutter {
 public:
  // A null `base` only counts bytes.
  explicit RegionCutter(std::byte* base) : base_(base) {}
  backend::Tensor Cut(backend::DType dtype, std::initializer_list<int64_t> shape);
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  int64_t bytes_ = 0;
};

// T tokens of the step, H hidden, D head_dim, E experts, k experts a token, I intermediate.
struct AttentionActivations {
  backend::Tensor query;   // [T, hq * D] f32
  backend::Tensor key;     // [T, hkv * D] f32
  backend::Tensor value;   // [T, hkv * D] f32
  backend::Tensor output;  // [T, hq * D] bf16
  static AttentionActivations Cut(const ModelConfig& config, int64_t tokens, RegionCutter* region);
};

struct MlpActivations {
  backend::Tensor gate_up;    // [T, 2 * I] f32
  backend::Tensor activated;  // [T, I] bf16
  static MlpActivations Cut(int64_t intermediate, int64_t tokens, RegionCutter* region);
};

struct MoeActivations {
  backend::Tensor router_input;   // [T, H] f32: the normed input, unrounded
  backend::Tensor router_logits;  // [T, E] f32
  backend::Tensor weights;        // [T, k] f32
  backend::Tensor expert_output;  // [T * k, H] f32
  // Of the shared expert, in the place of expert_output, which has been combined by then.
  backend::Tensor shared_gate;    // [T, 1] f32
  backend::Tensor shared_output;  // [T, H] f32
  MlpActivations shared;
  static MoeActivations Cut(const ModelConfig& config, int64_t tokens, RegionCutter* region);
};

// Of the final norm and lm_head, for one tile of rows; the logits are apart.
struct HeadActivations {
  backend::Tensor rows;    // [R, H] f32
  backend::Tensor normed;  // [R, H] bf16
  static HeadActivations Cut(const ModelConfig& config, int64_t rows, RegionCutter* region);
};

class Activations {
 public:
  // For steps of at most `max_tokens`, and lm_head tiles of at most `logit_rows` rows.
  static absl::StatusOr<Activations> Create(const ModelConfig& config, int64_t max_tokens,
                                            int64_t logit_rows, backend::Backend& backend);
  // What Create takes.
  static int64_t Bytes(const ModelConfig& config, int64_t max_tokens, int64_t logit_rows);

  // For steps of at most `max_tokens` that run between the layers of a step in `base`, where only
  // the residual lives: one of their own, and for all else the memory of `base`, which must outlive
  // them and have as many tokens.
  static absl::StatusOr<Activations> CreateBeside(const Activations& base,
                                                  const ModelConfig& config, int64_t max_tokens,
                                                  backend::Backend& backend);
  // What CreateBeside takes.
  static int64_t BesideBytes(const ModelConfig& config, int64_t max_tokens);

  // Views for a step of `tokens`.
  backend::Tensor residual(int64_t tokens) const { return residual_.Rows(0, tokens); }
  backend::Tensor normed(int64_t tokens) const { return normed_.Rows(0, tokens); }
  // Host memory, filled by the device: valid after Synchronize.
  backend::Tensor expert_ids(int64_t tokens) const { return expert_ids_.Rows(0, tokens); }
  backend::Tensor logits(int64_t rows) const { return logits_.Rows(0, rows); }
  int64_t logit_rows() const { return logits_.dim(0); }

  // The region that phases share, from its start: cutting ends the life of the last phase.
  RegionCutter Phase() const { return RegionCutter(phase_base_); }

 private:
  Activations() = default;
  void CutDevice(const ModelConfig& config, int64_t max_tokens, RegionCutter* region);
  void CutHost(const ModelConfig& config, int64_t max_tokens, int64_t logit_rows,
               RegionCutter* region);

  backend::Buffer device_;
  backend::Buffer host_;
  backend::Tensor residual_;    // [T, H] f32
  backend::Tensor normed_;      // [T, H] bf16
  backend::Tensor expert_ids_;  // [T, k] i32
  backend::Tensor logits_;      // [R, V] f32
  std::byte* phase_base_ = nullptr;
};

}  // namespace moed::model
