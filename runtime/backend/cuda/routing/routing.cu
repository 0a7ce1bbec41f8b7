#include "runtime/backend/cuda/routing/norm_route.cuh"
#include "runtime/backend/cuda/routing/route_token.cuh"
#include "runtime/backend/cuda/routing/routing.h"

namespace moed::backend {
namespace {

struct NoTail {
  static constexpr bool kRoutes = true;
  __device__ void operator()(const RoutedExpert&, std::byte*) const {}
};

__global__ void __launch_bounds__(kRouteThreads) Route(RouteArguments a, int tokens) {
  const int token = blockIdx.x * kRouteWarps + threadIdx.x / 32;
  if (token < tokens) RouteAnyToken(a, token, threadIdx.x % 32);
}

}  // namespace

void LaunchRoute(const RouterSpec& spec, const float* logits, int tokens, int32_t* ids,
                 float* weights, cudaStream_t stream) {
  Route<<<(tokens + kRouteWarps - 1) / kRouteWarps, kRouteThreads, 0, stream>>>(
      {spec, logits, ids, weights}, tokens);
}

bool NormRouteSupports(int tokens, int hidden) {
  return tokens <= kMostNormRouteTokens && hidden % 4 == 0 &&
         hidden * sizeof(float) <= kMostSharedBytes;
}

NormRouteArguments NormRouteArgumentsOf(const RouterStep& step, int* arrived) {
  return {.spec = step.spec,
          .x = step.x.As<float>(),
          .norm_weight = step.norm_weight.As<float>(),
          .router = step.router.As<float>(),
          .normed = step.normed.As<__nv_bfloat16>(),
          .normed_f32 = step.normed_f32.As<float>(),
          .logits = step.logits.As<float>(),
          .ids = step.ids.As<int32_t>(),
          .weights = step.weights.As<float>(),
          .arrived = arrived,
          .epsilon = step.norm_epsilon,
          .hidden = static_cast<int>(step.x.dim(1))};
}

cudaError_t LaunchNormRoute(const NormRouteArguments& arguments, int tokens, cudaStream_t stream) {
  return LaunchNormRouteOf(arguments, tokens, NoTail(), 0, stream);
}

}  // namespace moed::backend
