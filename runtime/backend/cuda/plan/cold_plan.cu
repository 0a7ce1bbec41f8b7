#include "runtime/backend/cuda/plan/cold_plan.cuh"

namespace moed::backend {
namespace {

__global__ void __launch_bounds__(kPlanThreads) DivideExperts(DivideExpertsArguments a) {
  extern __shared__ int shared[];
  DivideLayer(a, shared);
}

}  // namespace

cudaError_t LaunchDivideExperts(const DivideExpertsArguments& arguments, cudaStream_t stream) {
  const size_t shared_bytes = DivideSharedBytes(arguments.plan.layer.num_experts);
  DivideExperts<<<1, kPlanThreads, shared_bytes, stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace moed::backend
