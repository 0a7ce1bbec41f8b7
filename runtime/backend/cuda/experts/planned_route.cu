#include "runtime/backend/cuda/experts/planned_route.h"

#include "runtime/backend/cuda/plan/cold_plan.h"
#include "runtime/backend/cuda/plan/cold_post.cuh"
#include "runtime/backend/cuda/plan/divide_token.cuh"
#include "runtime/backend/cuda/plan/plan_experts.cuh"
#include "runtime/backend/cuda/routing/norm_route.cuh"

namespace moed::backend {
namespace {

static_assert(kRouteThreads == kPlanThreads);

__device__ void ClearUses(const ExpertTableLayer& layer) {
  for (int e = threadIdx.x; e < layer.num_experts; e += kRouteThreads) layer.uses[e] = ExpertUse{};
  __syncthreads();
}

struct LogitsAlone {
  static constexpr bool kRoutes = false;
  __device__ void operator()(const RoutedExpert&, std::byte*) const {}
};

struct PlanTail {
  static constexpr bool kRoutes = true;
  PlanExpertsArguments plan;

  __device__ void operator()(const RoutedExpert& choice, std::byte*) const {
    ClearUses(plan.layer);
    if (threadIdx.x < 32) PlanToken(plan, choice.id, choice.weight);
  }
};

struct PlanRowsTail {
  static constexpr bool kRoutes = true;
  PlanExpertsArguments plan;
  int* arrived;  // 0, and again afterwards

  // The last block of all has every token's choice.
  __device__ void operator()(const RoutedExpert&, std::byte* memory) const {
    if (LastBlock(arrived, gridDim.y)) PlanLayer(plan, memory);
  }
};

struct DivideTail {
  static constexpr bool kRoutes = true;
  DivideExpertsArguments divide;
  const __nv_bfloat16* x;  // [1, hidden]

  __device__ void operator()(const RoutedExpert& choice, std::byte*) const {
    ColdState* const state = divide.state;
    const bool mail = state->step.failed == 0;
    ClearUses(divide.plan.layer);
    if (threadIdx.x < 32) {
      DivideToken(divide, choice.id, choice.weight);
    } else if (mail) {
      CopyIntoMailbox(divide.mailbox, x, 1, threadIdx.x - 32, kRouteThreads - 32);
    }
    __syncthreads();
    if (threadIdx.x == 0 && mail && state->num_items > 0) PostSequence(divide.mailbox, state);
  }
};

template <class Tail>
cudaError_t LaunchOfToken(const NormRouteArguments& route, const Tail& tail, cudaStream_t stream) {
  return LaunchNormRouteRows<1, kRouteWarps>(route, 1, tail, 0, stream);
}

}  // namespace

cudaError_t LaunchLogits(const NormRouteArguments& route, cudaStream_t stream) {
  return LaunchOfToken(route, LogitsAlone(), stream);
}

cudaError_t LaunchRouteAndPlan(const NormRouteArguments& route, const PlanExpertsArguments& plan,
                               cudaStream_t stream) {
  if (plan.rows == 1 && plan.top_k <= kMostPlannedExperts) {
    return LaunchOfToken(route, PlanTail{plan}, stream);
  }
  return LaunchNormRouteOf(route, plan.rows, PlanRowsTail{plan, route.arrived + plan.rows},
                           PlanSharedBytes(plan.layer.num_experts), stream);
}

cudaError_t LaunchRouteAndDivide(const NormRouteArguments& route,
                                 const DivideExpertsArguments& divide, cudaStream_t stream) {
  return LaunchOfToken(route, DivideTail{divide, route.normed}, stream);
}

}  // namespace moed::backend
