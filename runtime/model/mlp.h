// A SwiGLU MLP that every token takes: W_down (silu(W_gate x) * W_up x). Stateless; engine thread.
#pragma once

#include "runtime/backend/backend.h"
#include "runtime/model/activations.h"
#include "runtime/model/weights.h"

namespace moed::model {

// input [T, H] bf16 -> output [T, H] f32, added to what is there if `accumulate`.
void RunMlp(const MlpWeights& weights, const MlpActivations& activations,
            const backend::Tensor& input, const backend::Tensor& output, bool accumulate,
            backend::Backend& backend);

}  // namespace moed::model
