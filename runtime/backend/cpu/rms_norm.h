// Root-mean-square normalisation on the CPU: x * rsqrt(mean(x^2) + epsilon) * weight, in float32.
#pragma once

#include <cstdint>

#include "runtime/backend/cpu/thread_pool.h"
#include "runtime/backend/tensor.h"

namespace moed::backend {

// One row of `width` floats; `out` may be `x`.
void RmsNormRow(const float* x, const float* weight, int64_t width, float epsilon, float* out);

// x [T, H] f32, weight [H] f32 -> out [T, H] bf16, and unrounded into out_f32 [T, H] if not empty.
void RmsNormRows(ThreadPool& pool, const Tensor& x, const Tensor& weight, float epsilon,
                 const Tensor& out, const Tensor& out_f32);

}  // namespace moed::backend
