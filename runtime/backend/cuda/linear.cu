#include "runtime/backend/cuda/cuda_status.h"
#include "runtime/backend/cuda/linear.h"
#include "runtime/backend/cuda/tensor_core.cuh"

namespace moed::backend {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kColumnsPerPass = 32 * 8;

__device__ void Store(const LinearArguments& a, int row, int output, float value) {
  float& target = a.out[size_t(row) * a.out_features + output];
  if (a.bias != nullptr) value += a.bias[output];
  target = a.accumulate ? target + value : value;
}

// A warp to an output: its weight row is read once for all kRows rows of x, which lie in shared
// memory. in_features is a multiple of 8.
template <int kRows>
__global__ void __launch_bounds__(kThreads) FewRows(LinearArguments a) {
  extern __shared__ __align__(16) __nv_bfloat16 x[];
  for (int i = threadIdx.x * 8; i < kRows * a.in_features; i += kThreads * 8) {
    *reinterpret_cast<uint4*>(x + i) = *reinterpret_cast<const uint4*>(a.x + i);
  }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const int step = gridDim.x * kWarps;
  for (int output = blockIdx.x * kWarps + threadIdx.x / 32; output < a.out_features;
       output += step) {
    const __nv_bfloat16* weight = a.weight + size_t(output) * a.in_features;
    float sums[kRows] = {};
#pragma unroll 8
    for (int column = lane * 8; column < a.in_features; column += kColumnsPerPass) {
      const uint4 w = LoadStreaming(weight + column);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        sums[row] += Dot8(w, *reinterpret_cast<const uint4*>(x + row * a.in_features + column));
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float sum = WarpSum(sums[row]);
      if (lane == 0) Store(a, row, output, sum);
    }
  }
}

template <int kRows>
absl::Status LaunchFewRows(const LinearArguments& a, cudaStream_t stream) {
  const int shared_bytes = kRows * a.in_features * 2;
  absl::Status status =
      CudaStatus(cudaFuncSetAttribute(FewRows<kRows>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      shared_bytes),
                 "shared memory of a dense product");
  if (!status.ok()) return status;
  const int blocks = (a.out_features + kWarps - 1) / kWarps;
  FewRows<kRows><<<blocks, kThreads, shared_bytes, stream>>>(a);
  return CudaStatus(cudaGetLastError(), "launching a dense product");
}

__global__ void AddBias(const float* bias, int out_features, float* out) {
  for (int i = threadIdx.x; i < out_features; i += blockDim.x) {
    out[size_t(blockIdx.x) * out_features + i] += bias[i];
  }
}

absl::Status LaunchCublas(const LinearArguments& a, cublasHandle_t cublas, cudaStream_t stream) {
  const float one = 1.0f;
  const float beta = a.accumulate ? 1.0f : 0.0f;
  absl::Status status = CublasStatus(
      cublasGemmEx(cublas, CUBLAS_OP_T, CUBLAS_OP_N, a.out_features, a.rows, a.in_features, &one,
                   a.weight, CUDA_R_16BF, a.in_features, a.x, CUDA_R_16BF, a.in_features, &beta,
                   a.out, CUDA_R_32F, a.out_features, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
      "a dense product");
  if (status.ok() && a.bias != nullptr) {
    AddBias<<<a.rows, kThreads, 0, stream>>>(a.bias, a.out_features, a.out);
  }
  return status;
}

__global__ void __launch_bounds__(kThreads)
    LinearF32(const float* weight, const float* x, int in_features, int out_features, float* out) {
  const int output = blockIdx.x * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (output >= out_features) return;
  const float* w = weight + size_t(output) * in_features;
  const float* row = x + size_t(blockIdx.y) * in_features;
  float sum = 0.0f;
  for (int i = lane; i < in_features; i += 32) sum = fmaf(w[i], row[i], sum);
  sum = WarpSum(sum);
  if (lane == 0) out[size_t(blockIdx.y) * out_features + output] = sum;
}

}  // namespace

absl::Status LaunchLinear(const LinearArguments& a, cublasHandle_t cublas, cudaStream_t stream) {
  // The own kernel keeps all rows in shared memory and loads 16 bytes at a time.
  constexpr int kMaxSharedBytes = 200 << 10;
  if (a.rows > kFewRows || a.in_features % 8 != 0 || a.rows * a.in_features * 2 > kMaxSharedBytes) {
    return LaunchCublas(a, cublas, stream);
  }
  switch (a.rows) {
    case 1:
      return LaunchFewRows<1>(a, stream);
    case 2:
      return LaunchFewRows<2>(a, stream);
    case 3:
      return LaunchFewRows<3>(a, stream);
    case 4:
      return LaunchFewRows<4>(a, stream);
    case 5:
      return LaunchFewRows<5>(a, stream);
    case 6:
      return LaunchFewRows<6>(a, stream);
    case 7:
      return LaunchFewRows<7>(a, stream);
    default:
      return LaunchFewRows<8>(a, stream);
  }
}

void LaunchLinearF32(const float* weight, const float* x, int rows, int in_features,
                     int out_features, float* out, cudaStream_t stream) {
  const dim3 blocks((out_features + kWarps - 1) / kWarps, rows);
  LinearF32<<<blocks, kThreads, 0, stream>>>(weight, x, in_features, out_features, out);
}

}  // namespace moed::backend
