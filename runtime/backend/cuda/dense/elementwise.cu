#include "runtime/backend/cuda/dense/elementwise.h"
#include "runtime/backend/cuda/primitives/programmatic_launch.cuh"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {
namespace {

constexpr int kThreads = 256;

__global__ void Embed(const __nv_bfloat16* table, const int32_t* token_ids, int hidden,
                      float* out) {
  const __nv_bfloat16* row = table + size_t(token_ids[blockIdx.x]) * hidden;
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
    out[size_t(blockIdx.x) * hidden + i] = __bfloat162float(row[i]);
  }
}

// Sum over the block, the same in every thread.
__device__ float BlockSum(float value) {
  __shared__ float partial[kThreads / 32];
  value = WarpSum(value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) total += partial[i];
  return total;
}

__global__ void __launch_bounds__(kThreads)
    RmsNorm(const float* x, const float* weight, float epsilon, int hidden, __nv_bfloat16* out,
            float* out_f32) {
  LetNextKernelBegin();
  WaitForKernelAhead();
  const size_t row = size_t(blockIdx.x) * hidden;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < hidden; i += kThreads) squares += x[row + i] * x[row + i];
  const float scale = rsqrtf(BlockSum(squares) / hidden + epsilon);
  for (int i = threadIdx.x; i < hidden; i += kThreads) {
    const float value = x[row + i] * scale * weight[i];
    out[row + i] = __float2bfloat16(value);
    if (out_f32 != nullptr) out_f32[row + i] = value;
  }
}

__global__ void SwiGlu(const float* gate_up, int intermediate, __nv_bfloat16* out) {
  const float* gate = gate_up + size_t(blockIdx.x) * 2 * intermediate;
  for (int i = threadIdx.x; i < intermediate; i += blockDim.x) {
    out[size_t(blockIdx.x) * intermediate + i] =
        __float2bfloat16(Silu(gate[i]) * gate[intermediate + i]);
  }
}

__global__ void CombineExperts(const float* expert_out, const float* weights, int top_k, int hidden,
                               float* residual) {
  const size_t token = blockIdx.x;
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
    float sum = residual[token * hidden + i];
    for (int r = 0; r < top_k; ++r) {
      sum += weights[token * top_k + r] * expert_out[(token * top_k + r) * hidden + i];
    }
    residual[token * hidden + i] = sum;
  }
}

// The same, four columns a thread at a time.
__global__ void CombineExperts4(const float4* __restrict__ expert_out,
                                const float* __restrict__ weights, int top_k, int quads,
                                float4* __restrict__ residual) {
  const size_t token = blockIdx.x;
  for (int i = threadIdx.x; i < quads; i += blockDim.x) {
    float4 sum = residual[token * quads + i];
#pragma unroll 8
    for (int r = 0; r < top_k; ++r) {
      const float weight = weights[token * top_k + r];
      const float4 x = __ldcs(&expert_out[(token * top_k + r) * quads + i]);
      sum.x += weight * x.x;
      sum.y += weight * x.y;
      sum.z += weight * x.z;
      sum.w += weight * x.w;
    }
    residual[token * quads + i] = sum;
  }
}

__global__ void AddShared(const float* shared, const float* gate_logits, int hidden,
                          float* residual) {
  const size_t token = blockIdx.x;
  const float gate = gate_logits == nullptr ? 1.0f : 1.0f / (1.0f + __expf(-gate_logits[token]));
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
    residual[token * hidden + i] += gate * shared[token * hidden + i];
  }
}

__global__ void GatherRows(const float* x, const int32_t* rows, int hidden, float* out) {
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
    out[size_t(blockIdx.x) * hidden + i] = x[size_t(rows[blockIdx.x]) * hidden + i];
  }
}

}  // namespace

void LaunchEmbed(const __nv_bfloat16* table, const int32_t* token_ids, int tokens, int hidden,
                 float* out, cudaStream_t stream) {
  Embed<<<tokens, kThreads, 0, stream>>>(table, token_ids, hidden, out);
}

void LaunchRmsNorm(const float* x, const float* weight, float epsilon, int tokens, int hidden,
                   __nv_bfloat16* out, float* out_f32, cudaStream_t stream) {
  LaunchAhead(RmsNorm, {.grid = unsigned(tokens), .block = kThreads}, stream, x, weight, epsilon,
              hidden, out, out_f32);
}

void LaunchSwiGlu(const float* gate_up, int tokens, int intermediate, __nv_bfloat16* out,
                  cudaStream_t stream) {
  SwiGlu<<<tokens, kThreads, 0, stream>>>(gate_up, intermediate, out);
}

void LaunchCombineExperts(const float* expert_out, const float* weights, int tokens, int top_k,
                          int hidden, float* residual, cudaStream_t stream) {
  if (hidden % 4 == 0) {
    CombineExperts4<<<tokens, kThreads, 0, stream>>>(reinterpret_cast<const float4*>(expert_out),
                                                     weights, top_k, hidden / 4,
                                                     reinterpret_cast<float4*>(residual));
    return;
  }
  CombineExperts<<<tokens, kThreads, 0, stream>>>(expert_out, weights, top_k, hidden, residual);
}

void LaunchAddShared(const float* shared, const float* gate_logits, int tokens, int hidden,
                     float* residual, cudaStream_t stream) {
  AddShared<<<tokens, kThreads, 0, stream>>>(shared, gate_logits, hidden, residual);
}

void LaunchGatherRows(const float* x, const int32_t* rows, int count, int hidden, float* out,
                      cudaStream_t stream) {
  GatherRows<<<count, kThreads, 0, stream>>>(x, rows, hidden, out);
}

}  // namespace moed::backend
