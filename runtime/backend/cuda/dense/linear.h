// Dense products on CUDA: own kernels that read each weight once for a few rows, cuBLAS beyond.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "absl/status/status.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cuda/dense/cublas.h"

namespace moed::backend {

// Rows up to which own kernels are faster than cuBLAS, but for those of one_wave_linear.h.
inline constexpr int kFewRows = 16;

// One weight of a launch, and where its product goes.
struct LinearPart {
  const __nv_bfloat16* weight = nullptr;  // [out, in]
  const float* bias = nullptr;            // [out], or null
  float* out = nullptr;                   // [rows, out]
  int out_features = 0;
};

struct LinearArguments {
  LinearPart parts[kMaxLinearProducts];
  int num_parts = 0;
  const __nv_bfloat16* x = nullptr;  // [rows, in]
  // If set, x is RmsNorm (backend.h) of these rows; only where LinearNorms().
  const float* residual = nullptr;     // [rows, in]
  const float* norm_weight = nullptr;  // [in]
  float norm_epsilon = 0.0f;
  int rows = 0;
  int in_features = 0;
  bool accumulate = false;
};

// Whether the products, not added to what is there, can norm their rows themselves.
bool LinearNorms(const LinearArguments& arguments);

absl::Status LaunchLinear(const LinearArguments& arguments, const Cublas& cublas,
                          cudaStream_t stream);

// Both sides float32 (the router): weight [out, in], x [rows, in] -> out [rows, out].
absl::Status LaunchLinearF32(const float* weight, const float* x, int rows, int in_features,
                             int out_features, float* out, const Cublas& cublas,
                             cudaStream_t stream);

}  // namespace moed::backend
