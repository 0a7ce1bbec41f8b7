// RmsNorm of a single row by a block that needs it whole, which costs less than a launch.
#pragma once

#include <cuda_bf16.h>

#include "runtime/backend/cuda/dense/linear.h"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {

// Made by all kWarps of a block, then Load and Store by all. The weights of the first kHeld * 4
// values of a thread are on their way from the beginning, these from Load on; they stay in
// registers.
template <int kWarps, int kHeld>
class RowNorm {
 public:
  // Of the residual that `a` names, which must outlive this.
  __device__ explicit RowNorm(const LinearArguments& a) : a_(a) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) weight_[i] = Load(a.norm_weight, i);
  }

  __device__ void Load() {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) x_[i] = Load(a_.residual, i);
  }

  // Into `row`, bf16 in shared memory.
  __device__ void Store(__nv_bfloat16* row) const {
    __shared__ float partial[kWarps];
    const int count = (a_.in_features + 4 * kThreads - 1) / (4 * kThreads);
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) squares += Square(x_[i]);
#pragma unroll 1
    for (int i = kHeld; i < count; ++i) squares += Square(Load(a_.residual, i));
    squares = WarpSum(squares);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = squares;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += partial[w];
    const float scale = rsqrtf(total / a_.in_features + a_.norm_epsilon);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) StoreQuad(x_[i], weight_[i], scale, i, row);
#pragma unroll 1
    for (int i = kHeld; i < count; ++i) {
      StoreQuad(Load(a_.residual, i), Load(a_.norm_weight, i), scale, i, row);
    }
    __syncthreads();
  }

 private:
  static constexpr int kThreads = kWarps * 32;

  __device__ static int Column(int i) { return (i * kThreads + threadIdx.x) * 4; }
  __device__ float4 Load(const float* from, int i) const {
    return Column(i) < a_.in_features ? *reinterpret_cast<const float4*>(from + Column(i))
                                      : make_float4(0, 0, 0, 0);
  }
  __device__ static float Square(const float4& x) {
    return x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
  }
  __device__ void StoreQuad(const float4& x, const float4& weight, float scale, int i,
                            __nv_bfloat16* row) const {
    if (Column(i) >= a_.in_features) return;
    const __nv_bfloat162 pairs[2] = {
        __floats2bfloat162_rn(x.x * scale * weight.x, x.y * scale * weight.y),
        __floats2bfloat162_rn(x.z * scale * weight.z, x.w * scale * weight.w)};
    *reinterpret_cast<uint2*>(row + Column(i)) = *reinterpret_cast<const uint2*>(pairs);
  }

  const LinearArguments& a_;
  float4 x_[kHeld];
  float4 weight_[kHeld];
};

}  // namespace moed::backend
