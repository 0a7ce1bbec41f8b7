// Steps recorded as CUDA graphs, one for each shape, so that a decode step is one launch instead of
// hundreds. Owned by the CUDA backend; engine thread.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <tuple>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "runtime/backend/cuda/device/cuda_status.h"
#include "runtime/backend/cuda/device/step_layout.h"

namespace moed::backend {

class StepGraphs {
 public:
  // What decides which kernels a step launches: the caller's key, the context that attention is cut
  // for, and how the tokens belong to sequences.
  using Shape = std::tuple<uint64_t, int, StepLayout>;

  // Issues the step's ops on `stream`: directly the first time for a shape, when memory is taken
  // and kernels are loaded; recorded the second time and launched from then on. When
  // `memory_moves` differs from the last call's, recordings hold stale addresses and are dropped.
  absl::Status Run(Shape shape, uint64_t memory_moves, absl::FunctionRef<void()> issue,
                   cudaStream_t stream);

 private:
  using Graph = CudaHandle<cudaGraph_t, cudaGraphDestroy>;
  using Executable = CudaHandle<cudaGraphExec_t, cudaGraphExecDestroy>;

  absl::Status Record(absl::FunctionRef<void()> issue, cudaStream_t stream, Executable* executable);

  std::map<Shape, Executable> graphs_;  // empty handles: ran once, not recorded yet
  uint64_t memory_moves_ = 0;
};

}  // namespace moed::backend
