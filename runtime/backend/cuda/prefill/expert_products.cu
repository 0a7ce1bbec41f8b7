#include "runtime/backend/cuda/prefill/expert_products.h"
#include "runtime/backend/cuda/primitives/async_copy.cuh"
#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {
namespace {

// A block computes 128 rows by 64 outputs, its 8 warps 32 by 32 each, in steps of 64 along k.
constexpr int kThreads = 256;
constexpr int kOutputs = 64;
constexpr int kDepth = 64;
constexpr int kStages = 3;
constexpr int kChunks = kDepth / 8;  // 16-byte pieces of a row in shared memory
constexpr int kLoadRows = kThreads / kChunks;
constexpr int kRowLoads = kProductRows / kLoadRows;
constexpr int kWeightLoads = kOutputs / kLoadRows;
constexpr int kNeurons = kOutputs / 2;  // of a gate and up tile

struct Stage {
  uint4 rows[kProductRows][kChunks];
  uint4 weights[kOutputs][kChunks];
};

// Piece `chunk` of row `row`, placed so that eight rows' pieces lie in different banks.
template <int kCount>
__device__ uint32_t Address(uint4 (&tile)[kCount][kChunks], int row, int chunk) {
  return SharedAddress(&tile[row][chunk ^ (row % 8)]);
}

// 16 bytes into shared memory, or zeros.
__device__ void CopyAsync(uint32_t target, const void* source, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(inside ? 16 : 0)
               : "memory");
}

// What differs between the two products: where rows and weights come from, how the weights lie in
// shared memory, and where results go.
//
// Gate and up: k runs along the hidden size. A warp's 32 outputs are 16 neurons' gates, then their
// ups, so that it holds both of each.
struct GateUp {
  static __device__ int Depth(const ExpertProductsArguments& a) { return a.hidden; }
  static __device__ const __nv_bfloat16* Row(const ExpertProductsArguments& a, int index) {
    return a.x + size_t(a.rows[index] / a.top_k) * a.hidden;
  }
  static __device__ void LoadWeight(const ExpertProductsArguments& a, const __nv_bfloat16* blob,
                                    int first, int k, int row, int chunk, Stage& stage) {
    const int neuron = first * kNeurons + row / 32 * 16 + row % 16;
    const int part = row % 32 / 16;
    const int column = k + chunk * 8;
    const bool inside = neuron < a.intermediate && column < a.hidden;
    const size_t offset = (size_t(neuron) * 3 + part) * a.row_values + column;
    CopyAsync(Address(stage.weights, row, chunk), inside ? blob + offset : blob, inside);
  }
  // Fragments of outputs `output` to + 15 at k16 step `step`.
  static __device__ void LoadOutputs(Stage& stage, int output, int step, int lane,
                                     uint32_t (&m)[4]) {
    const int row = output + lane / 16 * 8 + lane % 8;
    LoadMatrices(m, Address(stage.weights, row, step * 2 + lane / 8 % 2));
  }
  static __device__ void Store(const ExpertProductsArguments& a, const ExpertProductTile& tile,
                               int first, int warp_row, int warp_output, int lane,
                               const float (&sums)[2][4][4]) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = warp_row + m * 16 + lane / 4 + half * 8;
          const int neuron = first * kNeurons + warp_output / 2 + n * 8 + lane % 4 * 2;
          if (row >= tile.num_rows || neuron >= a.intermediate) continue;
          const float* gate = sums[m][n] + half * 2;
          const float* up = sums[m][n + 2] + half * 2;
          *reinterpret_cast<__nv_bfloat162*>(
              a.activations + size_t(tile.first_row + row) * a.intermediate + neuron) =
              __floats2bfloat162_rn(Silu(gate[0]) * up[0], Silu(gate[1]) * up[1]);
        }
      }
    }
  }
};

// Down: k runs along the neurons, whose down columns are rows of the tile in shared memory.
struct Down {
  static __device__ int Depth(const ExpertProductsArguments& a) { return a.intermediate; }
  static __device__ const __nv_bfloat16* Row(const ExpertProductsArguments& a, int index) {
    return a.activations + size_t(index) * a.intermediate;
  }
  static __device__ void LoadWeight(const ExpertProductsArguments& a, const __nv_bfloat16* blob,
                                    int first, int k, int row, int chunk, Stage& stage) {
    const int neuron = k + row;
    const int column = first * kOutputs + chunk * 8;
    const bool inside = neuron < a.intermediate && column < a.hidden;
    const size_t offset = (size_t(neuron) * 3 + 2) * a.row_values + column;
    CopyAsync(Address(stage.weights, row, chunk), inside ? blob + offset : blob, inside);
  }
  static __device__ void LoadOutputs(Stage& stage, int output, int step, int lane,
                                     uint32_t (&m)[4]) {
    const int row = step * 16 + lane / 8 % 2 * 8 + lane % 8;
    LoadMatricesTransposed(m, Address(stage.weights, row, output / 8 + lane / 16));
  }
  static __device__ void Store(const ExpertProductsArguments& a, const ExpertProductTile& tile,
                               int first, int warp_row, int warp_output, int lane,
                               const float (&sums)[2][4][4]) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_row + m * 16 + lane / 4 + half * 8;
        if (row >= tile.num_rows) continue;
        float* out = a.out + size_t(a.rows[tile.first_row + row]) * a.hidden;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const int column = first * kOutputs + warp_output + n * 8 + lane % 4 * 2;
          if (column >= a.hidden) continue;
          *reinterpret_cast<float2*>(out + column) =
              make_float2(sums[m][n][half * 2], sums[m][n][half * 2 + 1]);
        }
      }
    }
  }
};

template <class Product>
__device__ void LoadStage(const ExpertProductsArguments& a, const __nv_bfloat16* blob,
                          const __nv_bfloat16* const (&rows)[kRowLoads], int k, Stage& stage) {
  const int chunk = threadIdx.x % kChunks;
  const int first = threadIdx.x / kChunks;
  const int column = k + chunk * 8;
#pragma unroll
  for (int i = 0; i < kRowLoads; ++i) {
    const bool inside = rows[i] != nullptr && column < Product::Depth(a);
    CopyAsync(Address(stage.rows, first + i * kLoadRows, chunk), inside ? rows[i] + column : blob,
              inside);
  }
#pragma unroll
  for (int i = 0; i < kWeightLoads; ++i) {
    Product::LoadWeight(a, blob, blockIdx.x, k, first + i * kLoadRows, chunk, stage);
  }
}

// sums[32 rows, 32 outputs] of the warp += one stage.
template <class Product>
__device__ void MultiplyStage(Stage& stage, int warp_row, int warp_output, int lane,
                              float (&sums)[2][4][4]) {
#pragma unroll
  for (int step = 0; step < kDepth / 16; ++step) {
    uint32_t rows[2][4];
    uint32_t outputs[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      LoadMatrices(rows[m],
                   Address(stage.rows, warp_row + m * 16 + lane % 16, step * 2 + lane / 16));
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      Product::LoadOutputs(stage, warp_output + n * 16, step, lane, outputs[n]);
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        MmaK16(sums[m][n], rows[m][0], rows[m][1], rows[m][2], rows[m][3],
               outputs[n / 2][n % 2 * 2], outputs[n / 2][n % 2 * 2 + 1]);
      }
    }
  }
}

// Grid: (outputs by 64, tile).
template <class Product>
__global__ void __launch_bounds__(kThreads, 2) Multiply(ExpertProductsArguments a) {
  extern __shared__ __align__(128) std::byte memory[];
  Stage* stages = reinterpret_cast<Stage*>(memory);
  const ExpertProductTile tile = a.tiles[blockIdx.y];
  const auto* blob = reinterpret_cast<const __nv_bfloat16*>(tile.blob);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int warp_row = warp % 4 * 32;
  const int warp_output = warp / 4 * 32;
  const __nv_bfloat16* rows[kRowLoads];
#pragma unroll
  for (int i = 0; i < kRowLoads; ++i) {
    const int row = threadIdx.x / kChunks + i * kLoadRows;
    rows[i] = row < tile.num_rows ? Product::Row(a, tile.first_row + row) : nullptr;
  }

  const int steps = (Product::Depth(a) + kDepth - 1) / kDepth;
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < steps) LoadStage<Product>(a, blob, rows, i * kDepth, stages[i]);
    CommitCopies();
  }
  float sums[2][4][4] = {};
  for (int i = 0; i < steps; ++i) {
    WaitForCopies<kStages - 2>();
    __syncthreads();
    const int ahead = i + kStages - 1;
    if (ahead < steps) {
      LoadStage<Product>(a, blob, rows, ahead * kDepth, stages[ahead % kStages]);
    }
    CommitCopies();
    // A warp whose rows are all beyond the tile has nothing to add.
    if (warp_row < tile.num_rows) {
      MultiplyStage<Product>(stages[i % kStages], warp_row, warp_output, lane, sums);
    }
  }
  Product::Store(a, tile, blockIdx.x, warp_row, warp_output, lane, sums);
}

template <class Product>
cudaError_t Launch(const ExpertProductsArguments& a, int outputs, int outputs_per_block,
                   cudaStream_t stream) {
  constexpr int kSharedBytes = kStages * sizeof(Stage);
  const cudaError_t error = cudaFuncSetAttribute(
      Multiply<Product>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  const int blocks = (outputs + outputs_per_block - 1) / outputs_per_block;
  Multiply<Product><<<dim3(blocks, a.num_tiles), kThreads, kSharedBytes, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace

void AddProductTiles(int most_rows, const std::byte* blob, int32_t first_row, int32_t num_rows,
                     std::vector<ExpertProductTile>* tiles) {
  const int64_t count = (num_rows + most_rows - 1) / most_rows;
  for (int64_t i = 0; i < count; ++i) {
    const auto begin = static_cast<int32_t>(num_rows * i / count);
    const auto end = static_cast<int32_t>(num_rows * (i + 1) / count);
    tiles->push_back({.blob = blob, .first_row = first_row + begin, .num_rows = end - begin});
  }
}

cudaError_t LaunchExpertProducts(const ExpertProductsArguments& arguments, cudaStream_t stream) {
  const cudaError_t error = Launch<GateUp>(arguments, arguments.intermediate, kNeurons, stream);
  if (error != cudaSuccess) return error;
  return Launch<Down>(arguments, arguments.hidden, kOutputs, stream);
}

}  // namespace moed::backend
