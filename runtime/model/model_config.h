// What a checkpoint's config.json says, in one spelling: families differ in config and tensor
// names, and only runtime/model/families/ knows them. Immutable after loading; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"

namespace moed::model {

enum class RopeType : uint8_t { kDefault, kLinear, kLlama3, kYarn };

struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000;
  int rotary_dims = 0;
  bool interleaved = false;
  double factor = 1;
  int64_t original_max_positions = 0;
  double low_freq_factor = 1;   // llama3
  double high_freq_factor = 4;  // llama3
  double beta_fast = 32;        // yarn
  double beta_slow = 1;         // yarn
  bool truncate = true;         // yarn
  double attention_factor = 1;  // resolved: multiplies cos and sin
};

struct LayerConfig {
  bool is_moe = true;
  int64_t dense_intermediate = 0;  // of the MLP if !is_moe
  int sliding_window = 0;          // keys visible to a query, itself included; 0: all
};

struct ModelConfig {
  std::string family;  // "qwen3_moe"
  int64_t hidden = 0;
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  int query_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  float norm_epsilon = 1e-6f;
  bool qkv_bias = false;
  bool output_bias = false;
  enum class QkNorm : uint8_t { kNone, kPerHead, kFullWidth } qk_norm = QkNorm::kNone;
  float clip_qkv = 0;
  bool tie_embeddings = false;
  RopeConfig rope;
  std::vector<LayerConfig> layers;
  int64_t expert_intermediate = 0;
  backend::RouterSpec router;       // num_experts and top_k among it
  int64_t shared_intermediate = 0;  // 0: no shared expert
  bool shared_gate = false;         // sigmoid gate on the shared expert

  int num_layers() const { return static_cast<int>(layers.size()); }
  int num_moe_layers() const;
};

// Reads the text of `file`, a config.json. Sizes must be given; an option that is absent is what
// its family's class in transformers says. INVALID_ARGUMENT, naming the file and the key: not JSON,
// a size absent or out of range, an unknown family or activation, quantized weights.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view text, const std::string& file);

}  // namespace moed::model
