// A warpgroup's part of attention on Hopper: 64 rows, a warp to two tokens (rows 0-7 are the heads
// of one, rows 8-15 of the other), against tiles of 128 keys in shared memory. The running softmax
// lies in registers; queries and probabilities are rounded to bf16.
#pragma once

#include <cuda_bf16.h>

#include <cmath>
#include <cstdint>

#include "runtime/backend/cuda/attention/attention.h"
#include "runtime/backend/cuda/attention/prompt_runs.cuh"
#include "runtime/backend/cuda/primitives/tile_pipeline.cuh"
#include "runtime/backend/cuda/primitives/warpgroup.cuh"

namespace moed::backend {

inline constexpr int kAttendingWarpgroups = 2;
inline constexpr int kAttendingRows = 64;
inline constexpr int kAttendingHeads = 8;
inline constexpr int kAttendingTokens = kAttendingRows / kAttendingHeads;
static_assert(kAttendingWarpgroups * kAttendingTokens == kPromptTileTokens);
inline constexpr int kTileKeys = 128;
inline constexpr int kColumns = 64;  // of a tile

// Rows of queries, keys or values: their first 64 columns, then the next 64.
template <int kDim, int kCount>
struct RowTiles {
  uint4 rows[kDim / kColumns][kCount][kColumns / 8];
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

inline constexpr float kLog2E = 1.44269504f;

__device__ __forceinline__ float PowerOfTwo(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ uint32_t RoundedPair(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// The rows of a run that a warpgroup attends with: lane 4 g + t works for head g of two tokens.
template <int kDim>
class AttendingRows {
 public:
  __device__ AttendingRows(const AttentionArguments& a, const PromptWork& work, int index)
      : lane_(threadIdx.x % 32), index_(index) {
    const int tile_first = work.run.begin / kPromptTileTokens * kPromptTileTokens;
    for (int half = 0; half < 2; ++half) {
      const int token =
          tile_first + index * kAttendingTokens + threadIdx.x % kWarpgroupThreads / 32 * 2 + half;
      const bool present = token >= work.run.begin && token < work.run.end;
      token_[half] = present && lane_ / 4 < work.heads ? token : -1;
      visible_.Set(half, a, token, present);
    }
  }

  // Scaled so that softmax is a power of two. By the whole warpgroup, whose products are done.
  __device__ void LoadQueries(const AttentionArguments& a, const PromptWork& work,
                              RowTiles<kDim, kAttendingRows>& queries) const {
    constexpr int kPieces = kDim / 8;
    constexpr int kLoadRows = kWarpgroupThreads / kPieces;
    const float scale = a.scale * kLog2E;
    const int tile_first = work.run.begin / kPromptTileTokens * kPromptTileTokens;
    const int piece = threadIdx.x % kPieces;
#pragma unroll
    for (int i = 0; i < kAttendingRows / kLoadRows; ++i) {
      const int row = threadIdx.x % kWarpgroupThreads / kPieces + i * kLoadRows;
      const int token = tile_first + index_ * kAttendingTokens + row / kAttendingHeads;
      const int head = row % kAttendingHeads;
      uint4 rounded = make_uint4(0, 0, 0, 0);
      if (token >= work.run.begin && token < work.run.end && head < work.heads) {
        const auto* q = reinterpret_cast<const float4*>(
            a.q + (size_t(token) * a.query_heads + work.first_head + head) * kDim + piece * 8);
        const float4 x = q[0];
        const float4 y = q[1];
        rounded = make_uint4(
            RoundedPair(x.x * scale, x.y * scale), RoundedPair(x.z * scale, x.w * scale),
            RoundedPair(y.x * scale, y.y * scale), RoundedPair(y.z * scale, y.w * scale));
      }
      queries.rows[piece / 8][row][(piece % 8) ^ (row % 8)] = rounded;
    }
    FenceForProducts();
    asm volatile("bar.sync %0, %1;" ::"r"(1 + index_), "n"(kWarpgroupThreads) : "memory");
  }

  // Begins the scores of a tile of keys.
  __device__ void Score(const RowTiles<kDim, kAttendingRows>& queries,
                        const RowTiles<kDim, kTileKeys>& keys) {
    const uint64_t q = TileDescriptor(SharedAddress(&queries));
    const uint64_t k = TileDescriptor(SharedAddress(&keys));
    PinSums(scores_);
    BeginProducts();
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      const int panel = i / 4;
      MultiplyInto(scores_, Advance(q, panel * int(sizeof(queries.rows[0])) + i % 4 * 32),
                   Advance(k, panel * int(sizeof(keys.rows[0])) + i % 4 * 32), i > 0);
    }
    CommitProducts();
  }

  // Begins to add the values of the tile that the probabilities are of.
  __device__ void Accumulate(const RowTiles<kDim, kTileKeys>& values) {
    const uint64_t v = ColumnsDescriptor(SharedAddress(&values), sizeof(values.rows[0]));
    PinSums(out_);
    BeginProducts();
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) {
      MultiplyRegisters<kDim>(out_, probabilities_ + 4 * k, Advance(v, k * 2048));
    }
    CommitProducts();
  }

  // The scores of keys from position `first` on, which are there, become powers of two.
  __device__ void Exponentials(int first) {
    PinSums(scores_);
    if (!visible_.SeeAll(first, kTileKeys)) Mask(first);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = maximum_[half];
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
        highest = fmaxf(highest, fmaxf(scores_[4 * n + 2 * half], scores_[4 * n + 2 * half + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
      // A row that has seen no key yet must not make NaN of two infinities.
      const float base = highest == -INFINITY ? 0.0f : highest;
      correction_[half] = PowerOfTwo(maximum_[half] - base);
      maximum_[half] = highest;
      float sum = sum_[half] * correction_[half];
#pragma unroll
      for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
        for (int i = 4 * n + 2 * half; i < 4 * n + 2 * half + 2; ++i) {
          scores_[i] = PowerOfTwo(scores_[i] - base);
          sum += scores_[i];
        }
      }
      sum_[half] = sum;
    }
  }

  // Makes probabilities of them and the sums so far comparable; no product may be under way.
  __device__ void Renew() {
    PinSums(out_);
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) out_[i] *= correction_[i / 2 % 2];
#pragma unroll
    for (int i = 0; i < kTileKeys / 4; ++i) {
      asm volatile("" : "+r"(probabilities_[i]));  // the last product has read it
      probabilities_[i] = RoundedPair(scores_[2 * i], scores_[2 * i + 1]);
    }
  }

  __device__ void Store(const AttentionArguments& a, const PromptWork& work) {
    PinSums(out_);
    for (int half = 0; half < 2; ++half) {
      float sum = sum_[half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (token_[half] < 0) continue;
      const float scale = 1.0f / sum;
      __nv_bfloat16* out =
          a.out + (size_t(token_[half]) * a.query_heads + work.first_head + lane_ / 4) * kDim +
          lane_ % 4 * 2;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<uint32_t*>(out + n * 8) =
            RoundedPair(out_[4 * n + 2 * half] * scale, out_[4 * n + 2 * half + 1] * scale);
      }
    }
  }

 private:
  __device__ void Mask(int first) {
#pragma unroll
    for (int i = 0; i < kTileKeys / 2; ++i) {
      const int key = first + i / 4 * 8 + lane_ % 4 * 2 + i % 2;
      if (visible_.Hides(i / 2 % 2, key)) scores_[i] = -INFINITY;
    }
  }

  int lane_;
  int index_;
  int token_[2];  // -1: nothing to store
  VisibleKeys visible_;
  float maximum_[2] = {-INFINITY, -INFINITY};
  float sum_[2] = {};
  float correction_[2];
  float scores_[kTileKeys / 2];
  uint32_t probabilities_[kTileKeys / 4] = {};
  float out_[kDim / 2] = {};
};

#endif

}  // namespace moed::backend
