// Router logits to the chosen experts and their weights, a warp to a token (Route of backend.h).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "runtime/backend/backend.h"

namespace moed::backend {

// logits [T, E] f32 -> ids [T, k], weights [T, k]; ties go to the lower id.
void LaunchRoute(const RouterSpec& spec, const float* logits, int tokens, int32_t* ids,
                 float* weights, cudaStream_t stream);

}  // namespace moed::backend
