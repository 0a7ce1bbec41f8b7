// Dense products on CUDA: own kernels that read each weight once for a few rows, cuBLAS beyond.
#pragma once

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "absl/status/status.h"

namespace moed::backend {

// Rows up to which the own kernel is faster than cuBLAS.
inline constexpr int kFewRows = 8;

struct LinearArguments {
  const __nv_bfloat16* weight = nullptr;  // [out, in]
  const float* bias = nullptr;            // [out], or null
  const __nv_bfloat16* x = nullptr;       // [rows, in]
  float* out = nullptr;                   // [rows, out]
  int rows = 0;
  int in_features = 0;
  int out_features = 0;
  bool accumulate = false;
};

absl::Status LaunchLinear(const LinearArguments& arguments, cublasHandle_t cublas,
                          cudaStream_t stream);

// Both sides float32 (the router): weight [out, in], x [rows, in] -> out [rows, out].
void LaunchLinearF32(const float* weight, const float* x, int rows, int in_features,
                     int out_features, float* out, cudaStream_t stream);

}  // namespace moed::backend
