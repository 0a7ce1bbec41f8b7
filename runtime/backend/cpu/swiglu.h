// The gated activation of dense and shared FFNs on the CPU.
#pragma once

#include "runtime/backend/cpu/thread_pool.h"
#include "runtime/backend/tensor.h"

namespace moed::backend {

// gate_up [T, 2 * I] f32 (gate then up) -> out [T, I] bf16: silu(gate) * up.
void SwiGluRows(ThreadPool& pool, const Tensor& gate_up, const Tensor& out);

}  // namespace moed::backend
