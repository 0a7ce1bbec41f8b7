// Experts in VRAM in two launches, each a stream over the weights in which no warp waits for
// another: gate and up, whose activations go to memory (gate_up_pass.cuh), then down
// (down_pass.cuh). For any hidden size, and for experts with more tokens than a task has: joined
// tasks of an expert read its weights once. Part of LaunchExpertTiles.
#pragma once

#include <cuda_runtime.h>

#include "runtime/backend/cuda/expert_tiles.h"

namespace moed::backend {

// Whether a block of the current device has room for what is kept on its way.
bool TwoPassSupports();

// Raises the kernels' shared-memory limits; once per device and hidden size.
cudaError_t PrepareTwoPass(int hidden);

// The tasks in VRAM; those in mapped host memory too, by the first blocks, if the link is kBulk.
cudaError_t LaunchTwoPass(const ExpertTilesArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
