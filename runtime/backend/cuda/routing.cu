#include "runtime/backend/cuda/norm_route.cuh"
#include "runtime/backend/cuda/route_token.cuh"
#include "runtime/backend/cuda/routing.h"

namespace moed::backend {
namespace {

// Tokens up to which all warps of a block share one expert, so that all multiprocessors read.
constexpr int kSplittingTokens = 2;
// Rows that a block takes at once, so that the router's weights are read less often; with few
// tokens more blocks are worth more.
constexpr int kSharedRows = 2;
constexpr int kSharingTokens = 16;
constexpr size_t kMostSharedBytes = 48 << 10;
static_assert(kSharedRows <= kRouteWarps);

struct NoTail {
  static constexpr bool kRoutes = true;
  __device__ void operator()(const RoutedExpert&) const {}
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

void LaunchNormRoute(const NormRouteArguments& arguments, int tokens, cudaStream_t stream) {
  const bool share = tokens >= kSharingTokens &&
                     kSharedRows * arguments.hidden * sizeof(float) <= kMostSharedBytes;
  if (share) {
    LaunchNormRouteRows<kSharedRows, 1>(arguments, tokens, NoTail(), stream);
  } else if (tokens <= kSplittingTokens) {
    LaunchNormRouteRows<1, kRouteWarps>(arguments, tokens, NoTail(), stream);
  } else {
    LaunchNormRouteRows<1, 1>(arguments, tokens, NoTail(), stream);
  }
}

}  // namespace moed::backend
