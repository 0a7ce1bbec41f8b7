// Values of a dense tensor as a checkpoint stores them (bf16, f16 or f32), converted.
#pragma once

#include <vector>

#include "runtime/backend/dtype.h"
#include "runtime/backend/tensor.h"

namespace moed::model {

// Row by row, behind what `values` holds.
void AppendFloats(const backend::Tensor& tensor, std::vector<float>* values);
void AppendBFloat16s(const backend::Tensor& tensor, std::vector<backend::BFloat16>* values);

}  // namespace moed::model
