// The planning kernel where the CPU takes part: as LaunchPlanExperts, but only what the device
// computes becomes tasks; the rest of the cold experts is listed in the CPU's mailbox, for
// CudaColdPath::Post to hand over.
#pragma once

#include <cuda_runtime.h>

#include "runtime/backend/cold_mailbox.h"
#include "runtime/backend/cuda/plan/cold_path.h"
#include "runtime/backend/cuda/plan/expert_table.h"

namespace moed::backend {

struct DivideExpertsArguments {
  PlanExpertsArguments plan;
  int layer = 0;
  ColdMailbox mailbox;
  ColdState* state = nullptr;
};

// One block. A task that covers only an expert's first tiles comes last in the link's span. Can be
// captured in a graph.
cudaError_t LaunchDivideExperts(const DivideExpertsArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
