// Dense products on the CPU: y = x W^T + b with bf16 weights packed once, and the float32 product
// of the router. An output element is one float32 sum over the inputs in rising order, so its bits
// depend neither on the threads nor on the rows it is computed with.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cpu/thread_pool.h"

namespace moed::backend {

absl::StatusOr<std::unique_ptr<LinearWeight>> PackLinear(ThreadPool& pool, const Tensor& weight,
                                                         const Tensor& bias);

// x [T, in] bf16 -> out [T, out] f32; added to what is there if `accumulate`. `weight` comes from
// PackLinear.
void LinearRows(ThreadPool& pool, const LinearWeight& weight, const Tensor& x, const Tensor& out,
                bool accumulate);

// weight [out, in] f32, x [T, in] f32 -> out [T, out] f32.
void LinearF32Rows(ThreadPool& pool, const Tensor& weight, const Tensor& x, const Tensor& out);

}  // namespace moed::backend
