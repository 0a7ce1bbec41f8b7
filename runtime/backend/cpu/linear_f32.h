// The router's product on the CPU: float32 on both sides, weights row-major as they are stored.
#pragma once

#include "runtime/backend/cpu/thread_pool.h"
#include "runtime/backend/tensor.h"

namespace moed::backend {

// weight [out, in] f32, x [T, in] f32 -> out [T, out] f32.
void LinearF32Rows(ThreadPool& pool, const Tensor& weight, const Tensor& x, const Tensor& out);

}  // namespace moed::backend
