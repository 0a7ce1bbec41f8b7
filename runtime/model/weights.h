// The dense weights of a decoder, on the device and ready for the ops: everything but the routed
// experts. Loaded once, immutable after; owned by the transformer.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/load_progress.h"
#include "runtime/model/model_config.h"

namespace moed::model {

// A tensor in the backend's memory, and the memory.
struct DeviceTensor {
  backend::Buffer buffer;
  backend::Tensor view;
};

struct AttentionWeights {
  DeviceTensor norm;                              // [H] f32
  std::unique_ptr<backend::LinearWeight> query;   // [hq * D, H]
  std::unique_ptr<backend::LinearWeight> key;     // [hkv * D, H]
  std::unique_ptr<backend::LinearWeight> value;   // [hkv * D, H]
  std::unique_ptr<backend::LinearWeight> output;  // [H, hq * D]
  DeviceTensor query_norm;                        // f32, or empty
  DeviceTensor key_norm;
};

// A SwiGLU MLP that every token takes: a dense layer's, or the shared expert.
struct MlpWeights {
  std::unique_ptr<backend::LinearWeight> gate_up;  // [2 * I, H], gate rows first
  std::unique_ptr<backend::LinearWeight> down;     // [H, I]
};

struct LayerWeights {
  AttentionWeights attention;
  DeviceTensor ffn_norm;     // [H] f32
  DeviceTensor router;       // [E, H] f32; empty in a dense layer
  MlpWeights mlp;            // the dense layer's, or the shared expert; may be empty
  DeviceTensor shared_gate;  // [1, H] f32, or empty
};

struct Weights {
  DeviceTensor embedding;                          // [V, H] bf16
  DeviceTensor final_norm;                         // [H] f32
  std::unique_ptr<backend::LinearWeight> lm_head;  // [V, H]
  std::vector<LayerWeights> layers;
};

// Reads every dense tensor. The checkpoint's errors, or RESOURCE_EXHAUSTED.
absl::StatusOr<Weights> LoadWeights(const Checkpoint& checkpoint, backend::Backend& backend,
                                    const LoadProgress& progress);

}  // namespace moed::model
