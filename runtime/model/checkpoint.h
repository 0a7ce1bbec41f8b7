// A checkpoint directory, opened: config, dense tensors by role, experts by key. Either real files
// (safetensors, read with pread; experts as published or encoded by `moed convert`) or, with
// LoadFormat::kDummy, random weights made on demand from a seed, so that a config.json alone can be
// served for load tests. Reading is thread-safe after Open.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/backend/buffer.h"
#include "runtime/backend/tensor.h"
#include "runtime/model/dense_role.h"
#include "runtime/model/expert_source.h"
#include "runtime/model/generation_config.h"
#include "runtime/model/model_config.h"

namespace moed::model {

enum class LoadFormat : uint8_t { kAuto, kDummy };

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
  // As stored; of a tensor that is there.
  virtual backend::DType DenseType(DenseRole role, int layer) const = 0;
  // `layer` is ignored for embedding, final norm and lm_head. Shape and dtype are checked, and in a
  // converted checkpoint the checksum: DATA_LOSS, naming file and tensor.
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
