// A checkpoint of a config.json alone: random weights, for load tests at full shape.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/model/checkpoint.h"

namespace moed::model {

// Weights that depend on seed, tensor and place alone. Standard deviations keep routing near
// uniform, as it is in trained models over many tokens: products 0.02, embeddings 1, and 0.001 for
// the attention's output. (At 0.02 there, attention averages over the context and amplifies what
// all tokens of a sequence share until they choose the same few experts.) Norms are 1.
std::unique_ptr<Checkpoint> MakeDummyCheckpoint(std::string directory, ModelConfig config,
                                                GenerationDefaults generation, uint64_t seed);

}  // namespace moed::model
