// A dense weight in VRAM, and the arguments of its products. Made by PrepareLinear, immutable.
#pragma once

#include <cuda_bf16.h>

#include <memory>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cuda/dense/linear.h"

namespace moed::backend {

class CudaLinear : public LinearWeight {
 public:
  CudaLinear(Buffer weight, Buffer bias, int64_t out_features, int64_t in_features)
      : weight_(std::move(weight)),
        bias_(std::move(bias)),
        out_features_(out_features),
        in_features_(in_features) {}
  int64_t out_features() const override { return out_features_; }
  int64_t in_features() const override { return in_features_; }
  const __nv_bfloat16* weight() const {
    return reinterpret_cast<const __nv_bfloat16*>(weight_.data());
  }
  const float* bias() const { return reinterpret_cast<const float*>(bias_.data()); }

 private:
  Buffer weight_;
  Buffer bias_;
  int64_t out_features_;
  int64_t in_features_;
};

// Copies `weight` [out, in] bf16 and `bias` [out] f32 (or empty) from host memory.
// RESOURCE_EXHAUSTED: no VRAM.
absl::StatusOr<std::unique_ptr<LinearWeight>> MakeCudaLinear(const Tensor& weight,
                                                             const Tensor& bias, Backend& backend);

// What LaunchLinear takes of `products`, whose weights are CudaLinear, with x [T, in] bf16.
LinearArguments ArgumentsOf(std::span<const LinearProduct> products, const Tensor& x,
                            bool accumulate);

}  // namespace moed::backend
