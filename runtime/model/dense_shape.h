// Which dense tensors a model has, and their shapes, as its config implies. Pure; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/backend/tensor.h"
#include "runtime/model/dense_role.h"
#include "runtime/model/model_config.h"

namespace moed::model {

// The shape of the tensor with that role in that layer, [out, in] for products; empty if the model
// has none (a router in a dense layer, lm_head of tied embeddings). `layer` is ignored for roles
// that are not per layer.
std::optional<std::vector<int64_t>> DenseShape(const ModelConfig& config, DenseRole role,
                                               int layer);

// A view of `data` in such a shape.
backend::Tensor DenseView(void* data, backend::DType dtype, const std::vector<int64_t>& shape);

}  // namespace moed::model
