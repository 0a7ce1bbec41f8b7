#include "runtime/model/logits_row.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace moed::model {
namespace {

constexpr size_t kLanes = 16;
constexpr size_t kBlock = 256;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// exp(x) for x <= 0 by 2^n * 2^f, |f| <= 1/2, the latter by its Taylor polynomial; the constant
// 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits of the mantissa.
// backend/cuda/sampling/row_keys.cuh repeats it, operation by operation.
inline float ExpOfNonPositive(float x) {
  constexpr float kRound = 12582912.0f;
  const float clamped = x < -86.0f ? -86.0f : x;
  const float shifted = clamped * 1.44269504f + kRound;
  const float f = clamped * 1.44269504f - (shifted - kRound);
  float power = 1.5403530e-4f;
  power = power * f + 1.3333558e-3f;
  power = power * f + 9.6181291e-3f;
  power = power * f + 5.5504109e-2f;
  power = power * f + 2.4022651e-1f;
  power = power * f + 6.9314718e-1f;
  power = power * f + 1.0f;
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRound);
  const float scale = std::bit_cast<float>((exponent + 127) << 23);
  return x < -86.0f ? 0.0f : power * scale;
}

float BlockMaximum(const float* values) {
  std::array<float, kLanes> lanes;
  lanes.fill(-kInfinity);
  for (size_t i = 0; i < kBlock; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = values[i + lane] > lanes[lane] ? values[i + lane] : lanes[lane];
    }
  }
  return *std::max_element(lanes.begin(), lanes.end());
}

bool HasNanOrPlusInfinity(std::span<const float> row) {
  std::array<int32_t, kLanes> bad = {};
  size_t i = 0;
  for (; i + kLanes <= row.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) bad[lane] |= !(row[i + lane] < kInfinity);
  }
  bool any = std::any_of(bad.begin(), bad.end(), [](int32_t lane) { return lane != 0; });
  for (; i < row.size(); ++i) any |= !(row[i] < kInfinity);
  return any;
}

// The values of `fill` for each block of a row, added up in lanes within a block and in double
// between blocks, so that the sum of 200 000 terms keeps its digits.
template <typename Fill>
double SumInLanes(size_t size, Fill fill) {
  double sum = 0;
  size_t i = 0;
  for (; i + kBlock <= size; i += kBlock) {
    std::array<float, kLanes> lanes = {};
    for (size_t j = i; j < i + kBlock; j += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += fill(j + lane);
    }
    for (float lane : lanes) sum += lane;
  }
  for (; i < size; ++i) sum += fill(i);
  return sum;
}

void KeepHighest(size_t count, std::vector<ScoredToken>* tokens) {
  if (tokens->size() <= count) return;
  std::nth_element(tokens->begin(), tokens->begin() + static_cast<ptrdiff_t>(count) - 1,
                   tokens->end(), RanksBefore);
  tokens->resize(count);
}

// Buckets for weights in [0, 1]: sign, exponent and four bits of mantissa order them, sixteen to
// an octave.
constexpr int kBucketShift = 19;
constexpr size_t kBuckets = (0x3f800000u >> kBucketShift) + 1;
size_t BucketOf(float weight) {
  return std::min<size_t>(std::bit_cast<uint32_t>(weight) >> kBucketShift, kBuckets - 1);
}

}  // namespace

RowMaximum FindMaximum(std::span<const float> row) {
  RowMaximum maximum = {.value = -kInfinity, .id = 0, .valid = !HasNanOrPlusInfinity(row)};
  if (!maximum.valid) return maximum;
  for (size_t i = 0; i < row.size(); i += kBlock) {
    const size_t end = std::min(i + kBlock, row.size());
    if (end - i == kBlock && BlockMaximum(&row[i]) <= maximum.value) continue;
    const auto highest = std::max_element(row.begin() + static_cast<ptrdiff_t>(i),
                                          row.begin() + static_cast<ptrdiff_t>(end));
    if (*highest <= maximum.value) continue;
    maximum.value = *highest;
    maximum.id = static_cast<int32_t>(highest - row.begin());
  }
  maximum.valid = maximum.value > -kInfinity;
  return maximum;
}

double Exponentials(std::span<const float> row, float maximum, float inverse_temperature,
                    std::span<float> out) {
  const float* source = row.data();
  float* destination = out.data();
  return SumInLanes(row.size(), [=](size_t i) {
    return destination[i] = ExpOfNonPositive((source[i] - maximum) * inverse_temperature);
  });
}

double SumOfExponentials(std::span<const float> row, float maximum) {
  const float* source = row.data();
  return SumInLanes(row.size(), [=](size_t i) { return ExpOfNonPositive(source[i] - maximum); });
}

void SelectHighest(std::span<const float> row, int count, std::vector<ScoredToken>* highest) {
  highest->clear();
  const size_t wanted = std::min(static_cast<size_t>(std::max(count, 0)), row.size());
  if (wanted == 0) return;
  // Later ids lose ties, so only what exceeds the lowest kept score can still enter.
  float threshold = -kInfinity;
  bool full = false;
  for (size_t i = 0; i < row.size(); i += kBlock) {
    const size_t end = std::min(i + kBlock, row.size());
    if (full && end - i == kBlock && BlockMaximum(&row[i]) <= threshold) continue;
    for (size_t j = i; j < end; ++j) {
      if (!full || row[j] > threshold) highest->push_back({static_cast<int32_t>(j), row[j]});
    }
    if (highest->size() >= wanted + kBlock || (!full && highest->size() >= wanted)) {
      KeepHighest(wanted, highest);
      threshold = std::max_element(highest->begin(), highest->end(), RanksBefore)->score;
      full = true;
    }
  }
  KeepHighest(wanted, highest);
  std::sort(highest->begin(), highest->end(), RanksBefore);
}

ScoredToken NucleusBoundary(std::span<const float> weights, double total, double fraction) {
  std::array<double, kBuckets> mass = {};
  for (float weight : weights) mass[BucketOf(weight)] += weight;
  const double wanted = fraction * total;
  size_t boundary = kBuckets - 1;
  double above = 0;
  for (; boundary > 0 && above + mass[boundary] < wanted; --boundary) above += mass[boundary];

  std::vector<ScoredToken> members;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] > 0 && BucketOf(weights[i]) == boundary) {
      members.push_back({static_cast<int32_t>(i), weights[i]});
    }
  }
  std::sort(members.begin(), members.end(), RanksBefore);
  for (const ScoredToken& member : members) {
    above += member.score;
    if (above >= wanted) return member;
  }
  return members.empty() ? ScoredToken{static_cast<int32_t>(weights.size()), 0} : members.back();
}

}  // namespace moed::model
