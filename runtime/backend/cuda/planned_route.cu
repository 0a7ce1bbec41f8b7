#include "runtime/backend/cuda/planned_route.h"

#include "runtime/backend/cuda/cold_plan.cuh"
#include "runtime/backend/cuda/cold_post.cuh"
#include "runtime/backend/cuda/norm_route.cuh"
#include "runtime/backend/cuda/plan_experts.cuh"

namespace moed::backend {
namespace {

static_assert(kRouteThreads == kPlanThreads);

struct PlanTail {
  PlanExpertsArguments plan;

  __device__ void operator()(const RoutedExpert& choice) const {
    for (int e = threadIdx.x; e < plan.layer.num_experts; e += kRouteThreads) {
      plan.layer.uses[e] = ExpertUse{};
    }
    __syncthreads();
    if (threadIdx.x < 32) PlanToken(plan, choice.id, choice.weight);
  }
};

struct DivideTail {
  DivideExpertsArguments divide;
  const __nv_bfloat16* x;  // [1, hidden]

  __device__ void operator()(const RoutedExpert&) const {
    __shared__ int memory[DivideSharedBytes(kMostRouterExperts) / sizeof(int)];
    __syncthreads();
    DivideLayer(divide, memory);
    __syncthreads();
    ColdState* const state = divide.state;
    if (state->num_items == 0 || state->step.failed != 0) return;
    CopyIntoMailbox(divide.mailbox, x, 1, threadIdx.x, kRouteThreads);
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) PostSequence(divide.mailbox, state);
  }
};

template <class Tail>
cudaError_t Launch(const NormRouteArguments& route, const Tail& tail, cudaStream_t stream) {
  LaunchNormRouteRows<1, kRouteWarps>(route, 1, tail, stream);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchRouteAndPlan(const NormRouteArguments& route, const PlanExpertsArguments& plan,
                               cudaStream_t stream) {
  return Launch(route, PlanTail{plan}, stream);
}

cudaError_t LaunchRouteAndDivide(const NormRouteArguments& route,
                                 const DivideExpertsArguments& divide, cudaStream_t stream) {
  return Launch(route, DivideTail{divide, route.normed}, stream);
}

}  // namespace moed::backend
