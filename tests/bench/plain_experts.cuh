// The reference of cuda_experts_bench: experts computed the plain way, and how far others are off.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <vector>

#include "runtime/backend/cuda/plan/expert_tasks.h"
#include "tests/bench/device_check.cuh"

namespace moed::backend {

// One block per (task, neuron), token by token: the reference. `weights`: the bf16 of all experts,
// one after another.
static __global__ void PlainExperts(const ExpertTask* tasks, const std::byte* weights,
                                    size_t expert_bytes, const __nv_bfloat16* x, float* residual,
                                    int hidden) {
  const ExpertTask& task = tasks[blockIdx.y];
  const auto* neuron =
      reinterpret_cast<const __nv_bfloat16*>(weights + task.expert * expert_bytes) +
      size_t{3} * hidden * blockIdx.x;
  __shared__ float gate_sum;
  __shared__ float up_sum;
  for (int t = 0; t < task.num_tokens; ++t) {
    if (threadIdx.x == 0) gate_sum = up_sum = 0.0f;
    __syncthreads();
    float gate = 0.0f;
    float up = 0.0f;
    for (int c = threadIdx.x; c < hidden; c += blockDim.x) {
      const float value = __bfloat162float(x[size_t(task.token[t]) * hidden + c]);
      gate += __bfloat162float(neuron[c]) * value;
      up += __bfloat162float(neuron[hidden + c]) * value;
    }
    atomicAdd(&gate_sum, gate);
    atomicAdd(&up_sum, up);
    __syncthreads();
    const float activation =
        __bfloat162float(__float2bfloat16(gate_sum / (1 + expf(-gate_sum)) * up_sum));
    for (int c = threadIdx.x; c < hidden; c += blockDim.x) {
      atomicAdd(residual + size_t(task.token[t]) * hidden + c,
                task.weight[t] * activation * __bfloat162float(neuron[2 * hidden + c]));
    }
    __syncthreads();
  }
}

// Of values on the device: root of the mean square of the difference, over that of `expected`.
inline double RelativeError(const float* device, const float* expected, size_t values) {
  std::vector<float> got(values), want(values);
  CUDA_CHECK(cudaMemcpy(got.data(), device, values * 4, cudaMemcpyDeviceToHost));
  CUDA_CHECK(cudaMemcpy(want.data(), expected, values * 4, cudaMemcpyDeviceToHost));
  double error = 0, norm = 0;
  for (size_t i = 0; i < values; ++i) {
    error += (got[i] - want[i]) * double(got[i] - want[i]);
    norm += want[i] * double(want[i]);
  }
  return std::sqrt(error / norm);
}

}  // namespace moed::backend
