// Values of a row as integers that rank as they do, and what a selection adds up of them: their
// number, or their weights. The weights are logits_row.h's, operation by operation.
#pragma once

#include <cstdint>

namespace moed::backend {

// Rises with the float; -0 and 0 are equal.
__device__ inline uint32_t OrderedBits(float value) {
  const uint32_t bits = __float_as_uint(__fadd_rn(value, 0.0f));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Rises from one that ranks after to one that ranks before. Never 0.
__device__ inline uint64_t RankKey(float score, int id) {
  return uint64_t{OrderedBits(score)} << 32 | ~uint32_t(id);
}
__device__ inline int IdOf(uint64_t key) { return int(~uint32_t(key)); }
__device__ inline float ScoreOf(uint64_t key) {
  const auto ordered = uint32_t(key >> 32);
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

// Weights from 0 to 1 as integers.
__device__ inline uint64_t ToFixed(float weight) {
  return __float2ull_rn(weight * 8796093022208.0f);  // 2^43
}
__device__ inline double FromFixed(uint64_t sum) { return double(sum) * 0x1p-43; }

// exp(x) for x <= 0, as the host computes it without fused products.
__device__ inline float Exponential(float x) {
  const float round = 12582912.0f;  // 1.5 * 2^23
  const float clamped = x < -86.0f ? -86.0f : x;
  const float scaled = __fmul_rn(clamped, 1.44269504f);
  const float shifted = __fadd_rn(scaled, round);
  const float f = __fsub_rn(scaled, __fsub_rn(shifted, round));
  float power = 1.5403530e-4f;
  power = __fadd_rn(__fmul_rn(power, f), 1.3333558e-3f);
  power = __fadd_rn(__fmul_rn(power, f), 9.6181291e-3f);
  power = __fadd_rn(__fmul_rn(power, f), 5.5504109e-2f);
  power = __fadd_rn(__fmul_rn(power, f), 2.4022651e-1f);
  power = __fadd_rn(__fmul_rn(power, f), 6.9314718e-1f);
  power = __fadd_rn(__fmul_rn(power, f), 1.0f);
  const int exponent = int(__float_as_uint(shifted) - __float_as_uint(round));
  const float scale = __uint_as_float(uint32_t(exponent + 127) << 23);
  return x < -86.0f ? 0.0f : __fmul_rn(power, scale);
}

// What a selection adds up, of a key.
struct CountMeasure {
  static constexpr bool kCounts = true;
  __device__ uint64_t operator()(uint64_t) const { return 1; }
};
// The values are weights.
struct WeightMeasure {
  static constexpr bool kCounts = false;
  __device__ uint64_t operator()(uint64_t key) const { return ToFixed(ScoreOf(key)); }
};
// The values are logits, of which those from `floor` on count.
struct ExponentialMeasure {
  static constexpr bool kCounts = false;
  float maximum = 0;
  float inverse_temperature = 1;
  uint64_t floor = 0;
  __device__ float Weight(float logit) const {
    return Exponential(__fmul_rn(__fsub_rn(logit, maximum), inverse_temperature));
  }
  __device__ uint64_t operator()(uint64_t key) const {
    return key >= floor ? ToFixed(Weight(ScoreOf(key))) : 0;
  }
};

}  // namespace moed::backend
