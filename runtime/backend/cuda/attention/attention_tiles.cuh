// A warp's part of attention on tensor cores: scores of a tile of keys against up to eight heads,
// and the running softmax over them.
#pragma once

#include <cuda_bf16.h>

#include <cmath>
#include <cstdint>

#include "runtime/backend/cuda/primitives/tensor_core.cuh"

namespace moed::backend {

// What the tensor cores multiply is bf16; what was float32 goes in as a sum of two, so that scores
// and probabilities keep 16 bits.
struct SplitPair {
  uint32_t high;
  uint32_t low;
};

__device__ inline SplitPair Split(float first, float second) {
  const __nv_bfloat162 high = __floats2bfloat162_rn(first, second);
  const float2 rounded = __bfloat1622float2(high);
  const __nv_bfloat162 low = __floats2bfloat162_rn(first - rounded.x, second - rounded.y);
  return {*reinterpret_cast<const uint32_t*>(&high), *reinterpret_cast<const uint32_t*>(&low)};
}

// 16 bytes of a row; zeros at and beyond `width`.
__device__ inline uint4 Load16(const __nv_bfloat16* row, int column, int width) {
  return column < width ? *reinterpret_cast<const uint4*>(row + column) : make_uint4(0, 0, 0, 0);
}

// The queries of up to 8 heads as the A operand: lane 4 g + t holds head g, columns c * 32 + t * 8
// to + 7, the high parts as rows 0-7 and the low parts as rows 8-15. k is permuted alike on the
// side of the keys, so that their 16-byte loads are fragments as they stand.
template <int kChunks>
struct Queries {
  uint4 high[kChunks];
  uint4 low[kChunks];

  // `q`: the group's first head.
  __device__ Queries(const float* q, int heads, int head_dim, float scale, int lane) {
    const int head = lane / 4;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int column = c * 32 + lane % 4 * 8;
      auto* high_words = reinterpret_cast<uint32_t*>(&high[c]);
      auto* low_words = reinterpret_cast<uint32_t*>(&low[c]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        SplitPair pair = {0, 0};
        if (head < heads && column < head_dim) {
          const float2 x = *reinterpret_cast<const float2*>(q + head * head_dim + column + 2 * i);
          pair = Split(x.x * scale, x.y * scale);
        }
        high_words[i] = pair.high;
        low_words[i] = pair.low;
      }
    }
  }
};

// Scores of head g against keys 2 t and 2 t + 1 of a tile; `key`: the row of the tile's key g.
template <int kChunks>
__device__ float2 Score(const Queries<kChunks>& q, const uint4 (&key)[kChunks]) {
  float sums[4] = {};
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    MmaK16(sums, q.high[c].x, q.low[c].x, q.high[c].y, q.low[c].y, key[c].x, key[c].y);
    MmaK16(sums, q.high[c].z, q.low[c].z, q.high[c].w, q.low[c].w, key[c].z, key[c].w);
  }
  return make_float2(sums[0] + sums[2], sums[1] + sums[3]);
}

// A running softmax of a warp over 8 heads: lane 4 g + t knows head g's maximum and its own part of
// the sum; the values, scaled by exp(-maximum), lie as the transposed accumulator: value[m][r] is
// head 2 t + r % 2, column (m / 4) * 64 + g * 8 + 2 (m % 4) + r / 2.
template <int kHalves>
struct Softmax {
  float maximum = -INFINITY;
  float sum = 0.0f;
  float value[kHalves * 4][4] = {};

  __device__ static int Column(int lane, int m, int r) {
    return m / 4 * 64 + lane / 4 * 8 + 2 * (m % 4) + r / 2;
  }

  // Moves to the maximum of the two tiles' scores, which become probabilities.
  __device__ void Rescale(float2 (&scores)[2], int lane) {
    float highest = fmaxf(fmaxf(scores[0].x, scores[0].y), fmaxf(scores[1].x, scores[1].y));
    highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
    highest = fmaxf(highest, maximum);
    const float correction = __expf(maximum - highest);
    maximum = highest;
    sum *= correction;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      scores[tile].x = __expf(scores[tile].x - maximum);
      scores[tile].y = __expf(scores[tile].y - maximum);
      sum += scores[tile].x + scores[tile].y;
    }
    const float even = __shfl_sync(0xffffffffu, correction, lane % 4 * 8);
    const float odd = __shfl_sync(0xffffffffu, correction, lane % 4 * 8 + 4);
#pragma unroll
    for (int m = 0; m < kHalves * 4; ++m) {
      value[m][0] *= even;
      value[m][1] *= odd;
      value[m][2] *= even;
      value[m][3] *= odd;
    }
  }

  // Adds a tile: `even`, `odd` are the values of its keys 2 t and 2 t + 1.
  __device__ void Add(float2 probability, const uint4 (&even)[kHalves],
                      const uint4 (&odd)[kHalves]) {
    const SplitPair p = Split(probability.x, probability.y);
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const auto* e = reinterpret_cast<const uint32_t*>(&even[h]);
      const auto* o = reinterpret_cast<const uint32_t*>(&odd[h]);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const uint32_t first = __byte_perm(e[m], o[m], 0x5410);
        const uint32_t second = __byte_perm(e[m], o[m], 0x7632);
        MmaK8(value[h * 4 + m], first, second, p.high);
        MmaK8(value[h * 4 + m], first, second, p.low);
      }
    }
  }
};

}  // namespace moed::backend
