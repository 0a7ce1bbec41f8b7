// A checkpoint directory, opened: config, dense tensors by role, experts by key. Either real files
// (safetensors, read with pread) or, with LoadFormat::kDummy, random weights made on demand from a
// seed, so that a config.json alone can be served for load tests.
// Reading is thread-safe after Open.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/buffer.h"
#include "runtime/backend/tensor.h"
#include "runtime/model/expert_source.h"
#include "runtime/model/model_config.h"

namespace moed::model {

// Sampling defaults and end tokens of generation_config.json (or config.json's eos).
struct GenerationDefaults {
  std::optional<float> temperature;
  std::optional<int> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<int64_t> max_new_tokens;
  std::vector<int32_t> eos_token_ids;
};

enum class LoadFormat : uint8_t { kAuto, kDummy };

// The dense tensors of a decoder, by role instead of by a family's name.
enum class DenseRole : uint8_t {
  kEmbedding,
  kFinalNorm,
  kLmHead,
  // per layer
  kAttentionNorm,
  kFfnNorm,
  kQuery,
  kKey,
  kValue,
  kOutput,
  kQueryBias,
  kKeyBias,
  kValueBias,
  kOutputBias,
  kQueryNorm,
  kKeyNorm,
  kRouter,
  kMlpGate,
  kMlpUp,
  kMlpDown,
  kSharedGate,
  kSharedUp,
  kSharedDown,
  kSharedExpertGate,
};

// Host memory with a tensor's values in the file's dtype.
struct HostTensor {
  backend::Buffer buffer;
  backend::Tensor view;
};

class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  virtual const ModelConfig& config() const = 0;
  virtual const GenerationDefaults& generation() const = 0;
  virtual const std::string& directory() const = 0;
  // False if the family has no such tensor, or it is absent and optional.
  virtual bool Has(DenseRole role, int layer) const = 0;
  // `layer` is ignored for embedding, final norm and lm_head. Shape and dtype are checked.
  virtual absl::StatusOr<HostTensor> ReadDense(DenseRole role, int layer) const = 0;
  virtual const ExpertSource& experts() const = 0;
};

struct CheckpointOptions {
  std::string directory;
  LoadFormat load_format = LoadFormat::kAuto;
  uint64_t seed = 0;
};

// NOT_FOUND: no directory or file; INVALID_ARGUMENT: a config without a needed key, an unknown
// family; DATA_LOSS: a damaged safetensors file. Every message names the file.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(const CheckpointOptions& options);

}  // namespace moed::model
