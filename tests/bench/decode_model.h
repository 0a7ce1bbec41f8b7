// A whole model with random weights on the GPU, for the decode benchmark: all experts in host
// memory, as many as wanted in slots, a KV cache for the batches that are asked for. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "cache/expert_cache.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/expert_format.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/expert_store.h"
#include "runtime/model/model_config.h"
#include "runtime/model/recoded_experts.h"
#include "runtime/model/step.h"
#include "runtime/model/transformer.h"

namespace moed {

struct DecodeModelOptions {
  model::ModelConfig config;
  int context = 0;               // tokens before each one that is decoded
  int largest_batch = 0;         // of DecodeStep
  int prefill_tokens = 0;        // of Prefill
  double largest_residency = 0;  // of SetResidency
  bool bf12 = false;
  backend::ColdPath cold_path = backend::ColdPath::kLink;
};

// Bytes of VRAM.
struct DecodeVram {
  int64_t weights = 0;  // all but the experts
  int64_t slots = 0;    // that the cache may fill
  int64_t kv_cache = 0;
  int64_t in_use = 0;  // all that the device has given out: also workspaces, unused slots, CUDA
};

class DecodeModel {
 public:
  // Prints how long it took. Dies of any error, naming it.
  explicit DecodeModel(const DecodeModelOptions& options);

  // As many slots as this share of the experts would take in bf16: the same bytes in every format.
  void SetResidency(double share);
  // Seconds of one step, without sampling.
  double DecodeStep(int batch);
  // Seconds of one chunk of prefill_tokens from position 0 on.
  double Prefill();

  const model::ModelConfig& config() const { return options_.config; }
  size_t expert_bytes() const { return experts_->format().blob_bytes(); }
  cache::CacheStats Stats() const { return experts_->cache().Stats(); }
  backend::ColdNeurons Neurons() const { return experts_->device()->cold_neurons(); }
  backend::ColdRates Rates() const { return experts_->device()->cold_rates(); }
  DecodeVram Vram() const;
  backend::Backend& backend() { return *backend_; }

 private:
  void LoadExperts();
  void CreateTransformer();
  int SlotsOf(double share, const backend::ExpertFormat& format) const;
  std::vector<int32_t> RandomTokens(int count);
  double Forward(const model::StepInput& input);

  const DecodeModelOptions options_;
  std::unique_ptr<backend::Backend> backend_;
  std::unique_ptr<model::Checkpoint> checkpoint_;
  std::unique_ptr<model::EncodedExperts> encoded_;  // null: bf16
  std::unique_ptr<model::ExpertStore> experts_;
  std::unique_ptr<model::Transformer> transformer_;
  int num_experts_ = 0;
  int blocks_each_ = 0;  // of KV, a sequence
  std::vector<int32_t> blocks_;
  std::vector<model::ExpertShare> shares_;
  std::mt19937 random_{7};
};

}  // namespace moed
