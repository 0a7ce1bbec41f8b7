#include "runtime/backend/cuda/planned_route.h"

#include "runtime/backend/cuda/cold_plan.h"
#include "runtime/backend/cuda/cold_post.cuh"
#include "runtime/backend/cuda/divide_token.cuh"
#include "runtime/backend/cuda/norm_route.cuh"
#include "runtime/backend/cuda/plan_experts.cuh"

namespace moed::backend {
namespace {

static_assert(kRouteThreads == kPlanThreads);

__device__ void ClearUses(const ExpertTableLayer& layer) {
  for (int e = threadIdx.x; e < layer.num_experts; e += kRouteThreads) layer.uses[e] = ExpertUse{};
  __syncthreads();
}

struct LogitsAlone {
  static constexpr bool kRoutes = false;
  __device__ void operator()(const RoutedExpert&) const {}
};

struct PlanTail {
  static constexpr bool kRoutes = true;
  PlanExpertsArguments plan;

  __device__ void operator()(const RoutedExpert& choice) const {
    ClearUses(plan.layer);
    if (threadIdx.x < 32) PlanToken(plan, choice.id, choice.weight);
  }
};

struct DivideTail {
  static constexpr bool kRoutes = true;
  DivideExpertsArguments divide;
  const __nv_bfloat16* x;  // [1, hidden]

  __device__ void operator()(const RoutedExpert& choice) const {
    ColdState* const state = divide.state;
    const bool mail = state->step.failed == 0;
    ClearUses(divide.plan.layer);
    if (threadIdx.x < 32) {
      DivideToken(divide, choice.id, choice.weight);
    } else if (mail) {
      CopyIntoMailbox(divide.mailbox, x, 1, threadIdx.x - 32, kRouteThreads - 32);
    }
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0 && mail && state->num_items > 0) PostSequence(divide.mailbox, state);
  }
};

template <class Tail>
cudaError_t Launch(const NormRouteArguments& route, const Tail& tail, cudaStream_t stream) {
  return LaunchAhead(NormRoute<1, kRouteWarps, Tail>, NormRouteShape<1, kRouteWarps>(route, 1),
                     stream, route, 1, tail);
}

}  // namespace

cudaError_t LaunchLogits(const NormRouteArguments& route, cudaStream_t stream) {
  return Launch(route, LogitsAlone(), stream);
}

cudaError_t LaunchRouteAndPlan(const NormRouteArguments& route, const PlanExpertsArguments& plan,
                               cudaStream_t stream) {
  return Launch(route, PlanTail{plan}, stream);
}

cudaError_t LaunchRouteAndDivide(const NormRouteArguments& route,
                                 const DivideExpertsArguments& divide, cudaStream_t stream) {
  return Launch(route, DivideTail{divide, route.normed}, stream);
}

}  // namespace moed::backend
