// Router logits to the chosen experts and their weights, a warp to a token (Route of backend.h),
// and for a few tokens the whole router from the residual on in one kernel (NormRoute).
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "runtime/backend/backend.h"

namespace moed::backend {

// The kernels hold a row's logits in registers.
inline constexpr int kMostRouterExperts = 512;

// logits [T, E] f32 -> ids [T, k], weights [T, k]; ties go to the lower id.
// REQUIRES: spec.num_experts <= kMostRouterExperts.
void LaunchRoute(const RouterSpec& spec, const float* logits, int tokens, int32_t* ids,
                 float* weights, cudaStream_t stream);

inline constexpr int kMostNormRouteTokens = 64;

struct NormRouteArguments {
  RouterSpec spec;
  const float* x = nullptr;            // [T, hidden]
  const float* norm_weight = nullptr;  // [hidden]
  const float* router = nullptr;       // [E, hidden]
  __nv_bfloat16* normed = nullptr;     // [T, hidden]
  float* normed_f32 = nullptr;         // [T, hidden]
  float* logits = nullptr;             // [T, E]
  int32_t* ids = nullptr;              // [T, k]
  float* weights = nullptr;            // [T, k]
  int* arrived = nullptr;              // [T + 1] zeros, zeros again afterwards
  float epsilon = 0.0f;
  int hidden = 0;
};

// `arrived`: [T + 1] zeros in device memory.
NormRouteArguments NormRouteArgumentsOf(const RouterStep& step, int* arrived);

// False for more tokens than read the router's weights again and again for less than a launch, and
// for rows that do not fit into shared memory.
bool NormRouteSupports(int tokens, int hidden);

cudaError_t LaunchNormRoute(const NormRouteArguments& arguments, int tokens, cudaStream_t stream);

}  // namespace moed::backend
