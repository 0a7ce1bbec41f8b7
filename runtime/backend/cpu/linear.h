// The dense layers' product on the CPU: y = x W^T + b with packed bf16 weights. A weight is read
// from memory once for up to 400 rows. The bits of a row of y do not depend on the other rows, on
// threads or on chunks (panel_product.h), except that AVX512-BF16 and AMX kernels, where they are
// used, sum in another order. Engine thread.
#pragma once

#include <vector>

#include "runtime/backend/cpu/packed_weight.h"
#include "runtime/backend/cpu/thread_pool.h"
#include "runtime/backend/tensor.h"

namespace moed::backend {

// x [T, in] bf16 -> out [T, out] f32; added to what is there if `accumulate`. `workspace` holds
// rows of x as float32 and is kept by the caller from call to call.
void LinearRows(ThreadPool& pool, const PackedWeight& weight, const Tensor& x, const Tensor& out,
                bool accumulate, std::vector<float>& workspace);

}  // namespace moed::backend
