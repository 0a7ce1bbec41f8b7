#include "runtime/backend/cuda/dense/linear.h"
#include "runtime/backend/cuda/dense/one_wave_linear.h"
#include "runtime/backend/cuda/device/cuda_status.h"
#include "runtime/backend/cuda/primitives/programmatic_launch.cuh"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kBlockOutputs = 16;
constexpr int kPairColumns = 64;  // a warp takes 128 bytes of each weight row at a time
constexpr int kTileTokens = 8;
constexpr int kFewBlocks = 256;  // fewer leave multiprocessors without work
constexpr int kBatchPairs = 2;   // of a warp, in flight at once
constexpr int kFewF32Rows = 64;  // beyond, the weights would be read too often

__host__ __device__ int BlocksOf(const LinearPart& part) {
  return (part.out_features + kBlockOutputs - 1) / kBlockOutputs;
}

// The part that `block` of the launch belongs to; `block` becomes the one within it.
__device__ LinearPart PartOf(const LinearArguments& a, int* block) {
  LinearPart part = a.parts[0];
#pragma unroll
  for (int i = 1; i < kMaxLinearProducts; ++i) {
    if (i >= a.num_parts || *block < BlocksOf(part)) continue;
    *block -= BlocksOf(part);
    part = a.parts[i];
  }
  return part;
}

// What a lane holds of a batch of weights: pairs of 128 bytes of the rows g and g + 8.
struct WeightBatch {
  uint4 low[kBatchPairs * 2];
  uint4 high[kBatchPairs * 2];

  // Pairs `first`, `first` + kWarps, ...; what is beyond `end` or in_features reads as zero.
  __device__ void Load(const __nv_bfloat16* low_row, const __nv_bfloat16* high_row, int first,
                       int end, int in_features, int t) {
#pragma unroll
    for (int i = 0; i < kBatchPairs * 2; ++i) {
      const int column = ColumnOf(first, i, t);
      const bool inside = column < in_features && first + i / 2 * kWarps < end;
      low[i] = inside ? LoadStreaming(low_row + column) : make_uint4(0, 0, 0, 0);
      high[i] = inside ? LoadStreaming(high_row + column) : make_uint4(0, 0, 0, 0);
    }
  }
  __device__ static int ColumnOf(int first, int i, int t) {
    return (first + i / 2 * kWarps) * kPairColumns + i % 2 * 32 + t * 8;
  }
};

// A lane's tokens for a batch of weights: row `row` of x at the same columns, zeros beyond.
struct TokenBatch {
  uint4 values[kBatchPairs * 2];

  __device__ void Load(const LinearArguments& a, int row, int first, int t) {
    const __nv_bfloat16* tokens = a.x + size_t(row) * a.in_features;
#pragma unroll
    for (int i = 0; i < kBatchPairs * 2; ++i) {
      const int column = WeightBatch::ColumnOf(first, i, t);
      const bool inside = column < a.in_features && row < a.rows;
      values[i] =
          inside ? *reinterpret_cast<const uint4*>(tokens + column) : make_uint4(0, 0, 0, 0);
    }
  }
};

// What the warps summed up, into the outputs: element r of a lane's tile is output g + r / 2 * 8 of
// token 2 t + r % 2.
template <int kTiles>
__device__ void StoreOutputs(const LinearArguments& a, const LinearPart& part, int first_output,
                             const float (&partial)[kWarps][kTiles * 4][33]) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  for (int i = warp; i < kTiles * 4; i += kWarps) {
    const int r = i % 4;
    const int output = first_output + lane / 4 + r / 2 * 8;
    const int row = i / 4 * kTileTokens + 2 * (lane % 4) + r % 2;
    if (row >= a.rows || output >= part.out_features) continue;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += partial[w][i][lane];
    float* const target = part.out + size_t(row) * part.out_features + output;
    if (part.bias != nullptr && blockIdx.y == 0) sum += part.bias[output];
    if (a.accumulate) {
      atomicAdd(target, sum);
    } else {
      *target = sum;
    }
  }
}

// A block to 16 outputs, whose input features its warps share out; weights are read once for all
// rows of x. Lane 4 g + t holds weight rows g and g + 8 and token g at columns c + t * 8 to + 7: k
// is permuted alike on both sides, so that 16-byte loads are fragments as they stand. A batch of
// weights is on its way before the first is used, and before x is there. in_features is a multiple
// of 8.
template <int kTiles>
__global__ void __launch_bounds__(kThreads, 3) FewRows(const __grid_constant__ LinearArguments a) {
  __shared__ float partial[kWarps][kTiles * 4][33];
  int block = blockIdx.x;
  const LinearPart part = PartOf(a, &block);
  const int first_output = block * kBlockOutputs;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int last = part.out_features - 1;
  const __nv_bfloat16* low = part.weight + size_t(min(first_output + g, last)) * a.in_features;
  const __nv_bfloat16* high = part.weight + size_t(min(first_output + g + 8, last)) * a.in_features;
  const int all_pairs = (a.in_features + kPairColumns - 1) / kPairColumns;
  const int begin = all_pairs * blockIdx.y / gridDim.y;
  const int end = all_pairs * (blockIdx.y + 1) / gridDim.y;

  WeightBatch weights;
  weights.Load(low, high, begin + warp, end, a.in_features, t);
  LetNextKernelBegin();
  WaitForKernelAhead();
  float sums[kTiles][4] = {};
  for (int first = begin + warp; first < end; first += kBatchPairs * kWarps) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      TokenBatch tokens;
      tokens.Load(a, tile * kTileTokens + g, first, t);
#pragma unroll
      for (int i = 0; i < kBatchPairs * 2; ++i) {
        const uint4& w0 = weights.low[i];
        const uint4& w1 = weights.high[i];
        const uint4& x = tokens.values[i];
        MmaK16(sums[tile], w0.x, w1.x, w0.y, w1.y, x.x, x.y);
        MmaK16(sums[tile], w0.z, w1.z, w0.w, w1.w, x.z, x.w);
      }
    }
    const int next = first + kBatchPairs * kWarps;
    if (next < end) weights.Load(low, high, next, end, a.in_features, t);
  }
#pragma unroll
  for (int i = 0; i < kTiles * 4; ++i) partial[warp][i][lane] = sums[i / 4][i % 4];
  __syncthreads();
  StoreOutputs<kTiles>(a, part, first_output, partial);
}

template <int kTiles>
absl::Status LaunchFewRows(const LinearArguments& a, cudaStream_t stream) {
  int blocks = 0;
  for (int i = 0; i < a.num_parts; ++i) blocks += BlocksOf(a.parts[i]);
  // What is added to the output may come in parts, so that few outputs keep the device busy too.
  const int slices = a.accumulate && blocks < kFewBlocks ? 2 : 1;
  const LaunchShape shape = {.grid = dim3(blocks, slices), .block = kThreads};
  return CudaStatus(LaunchAhead(FewRows<kTiles>, shape, stream, a), "launching a dense product");
}

__global__ void AddBias(const float* bias, int out_features, float* out) {
  for (int i = threadIdx.x; i < out_features; i += blockDim.x) {
    out[size_t(blockIdx.x) * out_features + i] += bias[i];
  }
}

// Whether one launch can do both, each too small for one of its own, as those of keys and values
// are: cuBLAS steps from one to the other, and forwards.
bool Join(const LinearPart& part, const LinearPart& next) {
  return part.out_features == next.out_features && part.weight < next.weight && part.out < next.out;
}

// Of `part` and, if it is not null, of `next`.
absl::Status Multiply(const LinearArguments& a, const LinearPart& part, const LinearPart* next,
                      const Cublas& cublas) {
  const MatrixProduct<__nv_bfloat16> product = {.transpose_a = true,
                                                .m = part.out_features,
                                                .n = a.rows,
                                                .k = a.in_features,
                                                .a = part.weight,
                                                .a_stride = a.in_features,
                                                .b = a.x,
                                                .b_stride = a.in_features,
                                                .beta = a.accumulate ? 1.0f : 0.0f,
                                                .c = part.out,
                                                .c_stride = part.out_features};
  if (next == nullptr) return cublas.Multiply(product, "a dense product");
  const ProductBatch batch = {
      .count = 2, .a_step = next->weight - part.weight, .c_step = next->out - part.out};
  return cublas.Multiply(product, batch, "two dense products");
}

absl::Status LaunchCublas(const LinearArguments& a, const Cublas& cublas, cudaStream_t stream) {
  absl::Status status;
  for (int i = 0; i < a.num_parts && status.ok();) {
    const bool two = i + 1 < a.num_parts && Join(a.parts[i], a.parts[i + 1]);
    status = Multiply(a, a.parts[i], two ? &a.parts[i + 1] : nullptr, cublas);
    i += two ? 2 : 1;
  }
  for (int i = 0; i < a.num_parts && status.ok(); ++i) {
    const LinearPart& part = a.parts[i];
    if (part.bias == nullptr) continue;
    AddBias<<<a.rows, kThreads, 0, stream>>>(part.bias, part.out_features, part.out);
  }
  return status;
}

// A warp to an output and row.
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

absl::Status LaunchLinear(const LinearArguments& a, const Cublas& cublas, cudaStream_t stream) {
  if (OneWaveLinearSupports(a)) {
    return CudaStatus(LaunchOneWaveLinear(a, stream), "launching a dense product");
  }
  if (a.rows > kFewRows || a.in_features % 8 != 0) return LaunchCublas(a, cublas, stream);
  if (a.rows <= kTileTokens) return LaunchFewRows<1>(a, stream);
  return LaunchFewRows<2>(a, stream);
}

bool LinearNorms(const LinearArguments& a) {
  return a.rows <= kMostOneWaveNormedRows && OneWaveLinearSupports(a);
}

absl::Status LaunchLinearF32(const float* weight, const float* x, int rows, int in_features,
                             int out_features, float* out, const Cublas& cublas,
                             cudaStream_t stream) {
  if (rows > kFewF32Rows) {
    return cublas.Multiply(MatrixProduct<float>{.transpose_a = true,
                                                .m = out_features,
                                                .n = rows,
                                                .k = in_features,
                                                .a = weight,
                                                .a_stride = in_features,
                                                .b = x,
                                                .b_stride = in_features,
                                                .c = out,
                                                .c_stride = out_features},
                           "a product in float32");
  }
  const dim3 blocks((out_features + kWarps - 1) / kWarps, rows);
  LinearF32<<<blocks, kThreads, 0, stream>>>(weight, x, in_features, out_features, out);
  return CudaStatus(cudaGetLastError(), "launching a product in float32");
}

}  // namespace moed::backend
