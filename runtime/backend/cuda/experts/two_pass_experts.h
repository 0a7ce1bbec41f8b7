// Experts in VRAM in two launches, each a stream over the weights: gate and up, whose activations
// go to memory (streamed_gate_up.cuh, or chunked_gate_up.cuh where the tokens are too many for
// registers), then down (down_pass.cuh). For any hidden size, and for experts with more tokens than
// a task has: joined tasks of an expert read its weights once. Hopper; part of LaunchExpertTiles.
#pragma once

#include <cuda_runtime.h>

#include "runtime/backend/cuda/experts/expert_tiles.h"

namespace moed::backend {

// Whether the current device has what the kernels want, and room for what is on its way.
bool TwoPassSupports();

// Raises the kernels' shared-memory limits; once per device and hidden size.
cudaError_t PrepareTwoPass(int hidden);

// The tasks in VRAM; those in mapped host memory too, by the first blocks, if the link is kBulk.
cudaError_t LaunchTwoPass(const ExpertTilesArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
