#include "runtime/backend/cuda/plan/expert_table.h"

#include "runtime/backend/cuda/plan/plan_experts.cuh"

namespace moed::backend {
namespace {

__global__ void __launch_bounds__(kPlanThreads) PlanExperts(PlanExpertsArguments a) {
  extern __shared__ __align__(8) std::byte memory[];
  PlanLayer(a, memory);
}

}  // namespace

cudaError_t LaunchPlanExperts(const PlanExpertsArguments& arguments, cudaStream_t stream) {
  PlanExperts<<<1, kPlanThreads, PlanSharedBytes(arguments.layer.num_experts), stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace moed::backend
