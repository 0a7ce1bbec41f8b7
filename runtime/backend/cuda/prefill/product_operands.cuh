// The two products of experts with many rows as warpgroups compute them (warpgroup_products.cu):
// sums[128 outputs, rows of a tile], in two halves of 64 outputs, each half from boxes of a
// BlobTensor.
#pragma once

#include <cuda_bf16.h>

#include "runtime/backend/cuda/device/blob_tensor.h"
#include "runtime/backend/cuda/prefill/expert_products.h"

namespace moed::backend {

inline constexpr int kHalves = 2;
inline constexpr int kWarpgroupOutputs = kHalves * 64;

enum Part { kGate = 0, kUp = 1, kDown = 2 };

// (column, part, neuron) of a box in a blob.
struct BoxPlace {
  int column;
  int part;
  int neuron;
};

// The transpose of an 8 x 8 matrix of bf16, of which each lane has two neighbours of a row, before
// and after.
__device__ __forceinline__ uint32_t Transposed(uint32_t pair) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}
__device__ __forceinline__ uint32_t Pair(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// The quick division gives 0 for gates below -87, whose true value is below 1e-36.
__device__ __forceinline__ float SwiGlu(float gate, float up) {
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

// What differs between the two products: where weights and rows come from, how a box of weights is
// read, and where the sums of a warpgroup go. `part` counts the 128 outputs of a warpgroup.
//
// Gate and up: k runs along the hidden size. A warpgroup's halves are gates and ups of 64 neurons.
struct GateUp {
  static constexpr bool kTransposed = false;
  static constexpr int kStepBytes = 32;  // of 16 along k in a box
  static __device__ int Depth(const ExpertProductsArguments& a) { return a.hidden; }
  static __host__ __device__ int Outputs(const ExpertProductsArguments& a) {
    return 2 * a.intermediate;
  }
  static __device__ BoxPlace Box(int part, int half, int k) {
    return {k, half, part * kBlobBoxNeurons};
  }
  static __device__ const __nv_bfloat16* Rows(const ExpertProductsArguments& a) { return a.x; }
  static __device__ int Row(const ExpertProductsArguments& a, int index) {
    return a.rows[index] / a.top_k;
  }
  // Rows are stored where they stand in the list.
  template <int kRows>
  struct Targets {
    __device__ Targets(const ExpertProductsArguments&, const ExpertProductTile&, int) {}
  };
  template <int kRows>
  static __device__ void Store(const ExpertProductsArguments& a, const ExpertProductTile& tile,
                               const Targets<kRows>&, int part, int warp, int lane,
                               const float (&sums)[kHalves][kRows / 2]) {
    const int neuron = part * kBlobBoxNeurons + warp * 16 + lane % 4 * 2;
    __nv_bfloat16* out =
        a.activations + size_t(tile.first_row + lane / 4) * a.intermediate + neuron;
#pragma unroll
    for (int i = 0; i < kRows / 2; i += 4) {
      const float* gate = sums[0] + i;
      const float* up = sums[1] + i;
      const bool inside = i * 2 + lane / 4 < tile.num_rows;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t pair = Transposed(Pair(SwiGlu(gate[half * 2], up[half * 2]),
                                              SwiGlu(gate[half * 2 + 1], up[half * 2 + 1])));
        if (inside && neuron + half * 8 < a.intermediate) {
          *reinterpret_cast<uint32_t*>(out + half * 8) = pair;
        }
      }
      out += size_t{8} * a.intermediate;
    }
  }
};

// Down: k runs along the neurons, the rows of a box, whose columns are 64 outputs.
struct Down {
  static constexpr bool kTransposed = true;
  static constexpr int kStepBytes = 16 * kBlobBoxColumns * sizeof(__nv_bfloat16);
  static __device__ int Depth(const ExpertProductsArguments& a) { return a.intermediate; }
  static __host__ __device__ int Outputs(const ExpertProductsArguments& a) { return a.hidden; }
  static __device__ BoxPlace Box(int part, int half, int k) {
    return {(part * kHalves + half) * kBlobBoxColumns, kDown, k};
  }
  static __device__ const __nv_bfloat16* Rows(const ExpertProductsArguments& a) {
    return a.activations;
  }
  static __device__ int Row(const ExpertProductsArguments&, int index) { return index; }
  // Rows of the output: lane l has those of the tile's rows l, l + 32, ...
  template <int kRows>
  struct Targets {
    int32_t row[(kRows + 31) / 32];
    __device__ Targets(const ExpertProductsArguments& a, const ExpertProductTile& tile, int lane) {
#pragma unroll
      for (int i = 0; i < (kRows + 31) / 32; ++i) {
        const int next = i * 32 + lane;
        row[i] = next < tile.num_rows ? __ldg(a.rows + tile.first_row + next) : 0;
      }
    }
  };
  template <int kRows>
  static __device__ void Store(const ExpertProductsArguments& a, const ExpertProductTile& tile,
                               const Targets<kRows>& targets, int part, int warp, int lane,
                               const float (&sums)[kHalves][kRows / 2]) {
    const int first = part * kHalves * kBlobBoxColumns + warp * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < kRows / 2; i += 4) {
#pragma unroll
      for (int next = 0; next < 2; ++next) {
        const int row = lane % 4 * 2 + next;
        const int32_t target = __shfl_sync(0xffffffffu, targets.row[i / 16], i % 16 * 2 + row);
        if (i * 2 + row >= tile.num_rows) continue;
        float* out = a.out + size_t(target) * a.hidden;
#pragma unroll
        for (int eight = 0; eight < 2 * kHalves; ++eight) {
          const int column = first + eight / 2 * kBlobBoxColumns + eight % 2 * 8;
          if (column < a.hidden) __stcs(out + column, sums[eight / 2][i + eight % 2 * 2 + next]);
        }
      }
    }
  }
};

}  // namespace moed::backend
