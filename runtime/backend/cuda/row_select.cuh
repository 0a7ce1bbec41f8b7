// Selection in the order of ranks, higher score first and lower id first among equal ones, without
// sorting a row: histograms of 256 bins narrow the keys down, eight bits at a time, until what is
// left fits a small sort. Random rows take two histograms; ties go on into the bits of the id.
#pragma once

#include <cstdint>

#include "runtime/backend/cuda/row_block.cuh"

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

// exp(x) for x <= 0: logits_row.cc's, operation by operation, so that weights are the host's.
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

// Keys from `low` to `high`, and the measure and number of all that are higher.
struct KeyRange {
  uint64_t low = 0;
  uint64_t high = ~uint64_t{0};
  uint64_t above = 0;
  uint32_t num_above = 0;
  uint32_t members = 0;
};

template <typename Measure>
__device__ void FillHistogram(const RowBlock& block, const Measure& measure, const KeyRange& range,
                              int shift) {
  RowHistogram& histogram = block.shared->histogram;
  __syncthreads();  // what shares its memory has been read
  auto* words = reinterpret_cast<uint32_t*>(&histogram);
  for (int i = threadIdx.x; i < int(sizeof(histogram) / 4); i += kRowThreads) words[i] = 0;
  __syncthreads();
  const int replica = threadIdx.x % kReplicas;
  for (int i = threadIdx.x; i < block.width; i += kRowThreads) {
    const uint64_t key = RankKey(block.values[i], block.first + i);
    if (key < range.low || key > range.high) continue;
    const int bin = int(key >> shift) & (kBins - 1);
    atomicAdd(&histogram.count[bin][replica], 1u);
    if (Measure::kCounts) continue;
    const uint64_t mass = measure(key);
    const auto low = uint32_t(mass);
    const uint32_t before = low == 0 ? 0 : atomicAdd(&histogram.mass_low[bin][replica], low);
    const uint32_t high = uint32_t(mass >> 32) + (before + low < before ? 1 : 0);
    if (high != 0) atomicAdd(&histogram.mass_high[bin][replica], high);
  }
  __syncthreads();
}

// The bin of all blocks' histograms in which the measure from the top reaches `wanted`.
template <typename Measure>
__device__ KeyRange EnterBin(RowBlock& block, const KeyRange& range, uint64_t wanted, int shift) {
  RowShared& shared = *block.shared;
  const int parity = block.phase % 2;
  const int bin = kBins - 1 - int(threadIdx.x);  // of the first threads, from the top
  if (bin >= 0) {
    uint64_t count = 0, mass = 0;
    for (int replica = 0; replica < kReplicas; ++replica) {
      count += shared.histogram.count[bin][replica];
      mass += shared.histogram.mass_low[bin][replica] +
              (uint64_t{shared.histogram.mass_high[bin][replica]} << 32);
    }
    shared.bin_count[parity][bin] = uint32_t(count);
    shared.bin_mass[parity][bin] = Measure::kCounts ? count : mass;
  }
  ClusterSync();
  ++block.phase;
  uint64_t count = 0, mass = 0;
  if (bin >= 0) {
#pragma unroll
    for (int rank = 0; rank < kRowBlocks; ++rank) {
      count += *InBlock(&shared.bin_count[parity][bin], rank);
      mass += *InBlock(&shared.bin_mass[parity][bin], rank);
    }
  }
  const uint64_t count_before = BlockSumBefore(block, count);
  const uint64_t above =
      range.above + (Measure::kCounts ? count_before : BlockSumBefore(block, mass));
  if (above < wanted && wanted <= above + mass) {
    shared.found[0] = uint64_t(bin);
    shared.found[1] = above;
    shared.found[2] = count_before << 32 | count;
  }
  __syncthreads();
  KeyRange entered;
  entered.low = range.low | shared.found[0] << shift;
  entered.high = entered.low | ((uint64_t{1} << shift) - 1);
  entered.above = shared.found[1];
  entered.num_above = range.num_above + uint32_t(shared.found[2] >> 32);
  entered.members = uint32_t(shared.found[2]);
  return entered;
}

// A range of at most kMaxCandidates keys, those above it included if `with_above`, in which the
// measure reaches `wanted`: from 1 to its total over the row; with_above: at most kMaxCandidates.
template <typename Measure>
__device__ KeyRange Narrow(RowBlock& block, const Measure& measure, uint64_t wanted,
                           bool with_above) {
  KeyRange range;
  range.members = block.vocab_size;
  for (int shift = 56; shift >= 0; shift -= 8) {
    if (range.members + (with_above ? range.num_above : 0) <= kMaxCandidates) break;
    FillHistogram(block, measure, range, shift);
    range = EnterBin<Measure>(block, range, wanted, shift);
  }
  return range;
}

// Sorts shared->sorted[0, count) in falling order.
__device__ inline void SortFalling(const RowBlock& block, int count) {
  uint64_t* keys = block.shared->sorted;
  int size = 2;
  while (size < count) size *= 2;
  for (int i = count + int(threadIdx.x); i < size; i += kRowThreads) keys[i] = 0;
  __syncthreads();
  for (int run = 2; run <= size; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      const int pair = threadIdx.x;
      if (pair < size / 2) {
        const int i = 2 * pair - (pair & (distance - 1));
        const uint64_t a = keys[i], b = keys[i + distance];
        if ((a < b) == ((i & run) == 0)) {
          keys[i] = b;
          keys[i + distance] = a;
        }
      }
      __syncthreads();
    }
  }
}

// Puts the row's keys from `low` to `high`, at most kMaxCandidates, into shared->sorted of every
// block in falling order. Returns their number.
__device__ inline int GatherSorted(RowBlock& block, uint64_t low, uint64_t high) {
  RowShared& shared = *block.shared;
  const int parity = block.phase % 2;
  if (threadIdx.x == 0) shared.num_gathered[parity] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < block.width; i += kRowThreads) {
    const uint64_t key = RankKey(block.values[i], block.first + i);
    if (key < low || key > high) continue;
    shared.gathered[parity][atomicAdd(&shared.num_gathered[parity], 1u)] = key;
  }
  ClusterSync();
  ++block.phase;
  const int lane = threadIdx.x % 32;
  const int of_lane = lane < kRowBlocks ? int(*InBlock(&shared.num_gathered[parity], lane)) : 0;
  int count = 0;
  for (int rank = 0; rank < kRowBlocks; ++rank) {
    const int in_block = __shfl_sync(0xffffffffu, of_lane, rank);
    const uint64_t* keys = InBlock(&shared.gathered[parity][0], rank);
    for (int i = threadIdx.x; i < in_block; i += kRowThreads) shared.sorted[count + i] = keys[i];
    count += in_block;
  }
  SortFalling(block, count);
  return count;
}

// Each thread has the measures of two places of shared->sorted, 2 * threadIdx.x and the next. The
// first place at which the measure, begun with `above`, reaches `wanted`, which it does somewhere.
__device__ inline int PlaceReaching(const RowBlock& block, const uint64_t (&measures)[2],
                                    uint64_t above, uint64_t wanted) {
  uint64_t before = above + BlockSumBefore(block, measures[0] + measures[1]);
  for (int i = 0; i < 2; ++i) {
    if (before < wanted && wanted <= before + measures[i]) {
      block.shared->found[0] = 2 * threadIdx.x + i;
    }
    before += measures[i];
  }
  __syncthreads();
  return int(block.shared->found[0]);
}

// The first key in order of ranks at which the measure reaches `wanted`, as for Narrow.
template <typename Measure>
__device__ uint64_t SelectKey(RowBlock& block, const Measure& measure, uint64_t wanted) {
  const KeyRange range = Narrow(block, measure, wanted, /*with_above=*/false);
  const int count = GatherSorted(block, range.low, range.high);
  uint64_t measures[2];
  for (int i = 0; i < 2; ++i) {
    const int place = 2 * int(threadIdx.x) + i;
    measures[i] = place < count ? measure(block.shared->sorted[place]) : 0;
  }
  return block.shared->sorted[PlaceReaching(block, measures, range.above, wanted)];
}

// Puts the `count` highest keys, at most kMaxCandidates and the row's, first into shared->sorted.
__device__ inline void GatherHighest(RowBlock& block, int count) {
  const KeyRange range = Narrow(block, CountMeasure(), uint64_t(count), /*with_above=*/true);
  GatherSorted(block, range.low, ~uint64_t{0});
}

}  // namespace moed::backend
