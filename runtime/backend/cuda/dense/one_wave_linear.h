// Dense products of a few rows by no more blocks than the device has multiprocessors, so that all
// of them fetch their weights while the kernel ahead still makes their input, and each reads the
// input once for 32 to 48 outputs.
#pragma once

#include <cuda_runtime.h>

#include "runtime/backend/cuda/dense/linear.h"

namespace moed::backend {

inline constexpr int kMostOneWaveRows = 32;
// Rows up to which it norms them itself; more are read too often in float32.
inline constexpr int kMostOneWaveNormedRows = 16;

// Whether the weights' outputs fill the current device's multiprocessors once, and not more.
bool OneWaveLinearSupports(const LinearArguments& arguments);

cudaError_t LaunchOneWaveLinear(const LinearArguments& arguments, cudaStream_t stream);

}  // namespace moed::backend
