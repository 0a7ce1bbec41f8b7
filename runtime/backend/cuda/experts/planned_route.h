// The router of a step together with the planning of its experts, in one launch: the block that
// routes last goes on to plan, and where the CPU takes part in a single token's, hands it its
// share.
#pragma once

#include <cuda_runtime.h>

#include "runtime/backend/cuda/plan/cold_plan.h"
#include "runtime/backend/cuda/plan/expert_table.h"
#include "runtime/backend/cuda/routing/routing.h"

namespace moed::backend {

// A warp plans a token's experts.
inline constexpr int kMostPlannedExperts = 32;  // top-k

// LaunchNormRoute of one token but for the choice, which the expert kernel makes (TokenChoice).
cudaError_t LaunchLogits(const NormRouteArguments& route, cudaStream_t stream);

// LaunchNormRoute of plan.rows tokens, then LaunchPlanExperts. REQUIRES: NormRouteSupports(), here
// and below.
cudaError_t LaunchRouteAndPlan(const NormRouteArguments& route, const PlanExpertsArguments& plan,
                               cudaStream_t stream);

// LaunchNormRoute of one token, LaunchDivideExperts and CudaColdPath::Post of what was normed.
// REQUIRES: top_k at most kMostPlannedExperts.
cudaError_t LaunchRouteAndDivide(const NormRouteArguments& route,
                                 const DivideExpertsArguments& divide, cudaStream_t stream);

}  // namespace moed::backend
