// Norm, clipping and rotary embedding of one head of q or k in a warp's registers, of the commonest
// kind: head sizes of 64 and 128 that rotate wholly. (prepare_head.cuh takes any.)
#pragma once

#include <cuda_bf16.h>

#include <type_traits>

#include "runtime/backend/cuda/attention/prepare_head.cuh"
#include "runtime/backend/cuda/primitives/tagged_value.cuh"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {

// Whether heads rotate wholly, halves against each other.
__host__ __device__ inline bool RotatesWhole(const PrepareQkvArguments& a) {
  return !a.interleaved && a.rotary_dims == a.head_dim;
}

// A lane's share of a head that rotates wholly, in two halves: elements kEach * lane on of each.
template <int kDim>
struct LaneOfHead {
  static constexpr int kEach = kDim / 64;
  using Vector = std::conditional_t<kEach == 2, float2, float>;
  union Half {
    Vector vector;
    float values[kEach];
  };
  Half halves[2];

  static __device__ int Column(int half) { return half * kDim / 2 + threadIdx.x % 32 * kEach; }
  LaneOfHead() = default;
  __device__ explicit LaneOfHead(const float* x) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      halves[half].vector = *reinterpret_cast<const Vector*>(x + Column(half));
    }
  }
  // Whether all of the lane's share is there (LoadTagged).
  __device__ bool Load(const uint64_t* x, uint32_t launch) {
    bool there = true;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool half_there = LoadTagged(x + Column(half), launch, &halves[half].vector);
      there = there && half_there;
    }
    return there;
  }
  __device__ void Store(float* x) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *reinterpret_cast<Vector*>(x + Column(half)) = halves[half].vector;
    }
  }
  __device__ void Store(__nv_bfloat16* x) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        x[Column(half) + i] = __float2bfloat16(halves[half].values[i]);
      }
    }
  }

  // Of the head's own norm.
  __device__ float NormScale(float epsilon) const {
    float squares = 0.0f;
#pragma unroll
    for (const Half& half : halves) {
      for (float value : half.values) squares += value * value;
    }
    return rsqrtf(WarpSum(squares) / kDim + epsilon);
  }
  // `weight`: of the head's norm, or null; `scale`: of a norm over all heads.
  __device__ void ScaleAndClip(const float* weight, float scale, float clip) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        float& value = halves[half].values[i];
        if (weight != nullptr) value = value * scale * weight[Column(half) + i];
        value = Clip(value, clip);
      }
    }
  }
  // `weight`: of the head's norm, or null.
  __device__ void NormAndClip(const float* weight, float epsilon, float clip) {
    ScaleAndClip(weight, weight == nullptr ? 1.0f : NormScale(epsilon), clip);
  }
  // `rotations`: of the head's pairs.
  __device__ void Rotate(const Rotation* rotations) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const Rotation rotation = rotations[Column(0) + i];
      float& first = halves[0].values[i];
      float& second = halves[1].values[i];
      const float rotated = first * rotation.cosine - second * rotation.sine;
      second = second * rotation.cosine + first * rotation.sine;
      first = rotated;
    }
  }
};

}  // namespace moed::backend
