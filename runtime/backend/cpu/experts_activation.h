// The activation between an expert's two products. Every kernel goes through it, so that the
// rounding is the same in all. Pure; any thread.
#pragma once

#include <cstdint>

#include "runtime/backend/dtype.h"

namespace moed::backend {

// act[i] = silu(gate[i]) * up[i], silu(g) = g / (1 + exp(-g)), rounded to bf16.
void ActivateSwiGlu(const float* gate, const float* up, int64_t count, BFloat16* act);

}  // namespace moed::backend
