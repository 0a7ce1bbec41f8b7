// Selection in the order of ranks, higher score first and lower id first among equal ones, without
// sorting a row. The few highest are found by the threads' peaks: a histogram of one value a thread
// gives a bound that few values exceed. In general, histograms of 256 bins narrow the keys down,
// eight bits at a time, until what is left fits a small sort: random rows take two, ties go on into
// the bits of the id.
#pragma once

#include <cstdint>

#include "runtime/backend/cuda/sampling/row_block.cuh"
#include "runtime/backend/cuda/sampling/row_keys.cuh"

namespace moed::backend {

// Keys from `low` to `high`, and the measure and number of all that are higher.
struct KeyRange {
  uint64_t low = 0;
  uint64_t high = ~uint64_t{0};
  uint64_t above = 0;
  uint32_t num_above = 0;
  uint32_t members = 0;
};

__device__ inline void ClearHistogram(const RowBlock& block) {
  __syncthreads();  // what shares its memory has been read
  auto* words = reinterpret_cast<uint32_t*>(&block.shared->histogram);
  for (int i = threadIdx.x; i < int(sizeof(RowHistogram) / 4); i += kRowThreads) words[i] = 0;
  __syncthreads();
}

template <typename Measure>
__device__ void FillHistogram(const RowBlock& block, const Measure& measure, const KeyRange& range,
                              int shift) {
  RowHistogram& histogram = block.shared->histogram;
  ClearHistogram(block);
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
}

struct FoundBin {
  int bin = 0;
  uint64_t above = 0;  // the measure of higher bins, and of what was above them
  uint32_t num_above = 0;
  uint32_t members = 0;
};

// The bin of all blocks' histograms in which the measure from the top, begun with `above`, reaches
// `wanted`.
template <typename Measure>
__device__ FoundBin FindBin(RowBlock& block, uint64_t above, uint64_t wanted) {
  RowShared& shared = *block.shared;
  __syncthreads();  // the histogram is complete
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
  above += Measure::kCounts ? count_before : BlockSumBefore(block, mass);
  if (above < wanted && wanted <= above + mass) {
    shared.found[0] = uint64_t(bin);
    shared.found[1] = above;
    shared.found[2] = count_before << 32 | count;
  }
  __syncthreads();
  return {int(shared.found[0]), shared.found[1], uint32_t(shared.found[2] >> 32),
          uint32_t(shared.found[2])};
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
    const FoundBin found = FindBin<Measure>(block, range.above, wanted);
    range.low |= uint64_t(found.bin) << shift;
    range.high = range.low | ((uint64_t{1} << shift) - 1);
    range.above = found.above;
    range.num_above += found.num_above;
    range.members = found.members;
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

// Puts the keys `key_of(value, id)` of the row, but for zeros, into shared->sorted of every block
// in falling order. Returns their number; if that exceeds kMaxCandidates, nothing is there.
template <typename KeyOf>
__device__ int GatherSorted(RowBlock& block, const KeyOf& key_of) {
  RowShared& shared = *block.shared;
  const int parity = block.phase % 2;
  if (threadIdx.x == 0) shared.num_gathered[parity] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < block.width; i += kRowThreads) {
    const uint64_t key = key_of(block.values[i], block.first + i);
    if (key == 0) continue;
    const uint32_t place = atomicAdd(&shared.num_gathered[parity], 1u);
    if (place < kMaxCandidates) shared.gathered[parity][place] = key;
  }
  ClusterSync();
  ++block.phase;
  const int lane = threadIdx.x % 32;
  const int of_lane = lane < kRowBlocks ? int(*InBlock(&shared.num_gathered[parity], lane)) : 0;
  const int total = int(WarpReduce(uint64_t(of_lane), SumOf()));
  if (total > kMaxCandidates) return total;
  int count = 0;
  for (int rank = 0; rank < kRowBlocks; ++rank) {
    const int in_block = __shfl_sync(0xffffffffu, of_lane, rank);
    const uint64_t* keys = InBlock(&shared.gathered[parity][0], rank);
    for (int i = threadIdx.x; i < in_block; i += kRowThreads) shared.sorted[count + i] = keys[i];
    count += in_block;
  }
  SortFalling(block, total);
  return total;
}

__device__ inline int GatherRange(RowBlock& block, uint64_t low, uint64_t high) {
  return GatherSorted(block, [=](float value, int id) {
    const uint64_t key = RankKey(value, id);
    return key >= low && key <= high ? key : 0;
  });
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
  const int count = GatherRange(block, range.low, range.high);
  uint64_t measures[2];
  for (int i = 0; i < 2; ++i) {
    const int place = 2 * int(threadIdx.x) + i;
    measures[i] = place < count ? measure(block.shared->sorted[place]) : 0;
  }
  return block.shared->sorted[PlaceReaching(block, measures, range.above, wanted)];
}

// Bins of equal width from the row's highest value down.
struct ValueBins {
  float highest = 0;
  float scale = 0;
  __device__ int Of(float value) const {
    const float distance = __fmul_rn(__fsub_rn(highest, value), scale);
    return kBins - 1 - int(fminf(distance, float(kBins - 1)));
  }
};

// Whatever ranks among the `count` highest is in bin `lowest` or above: as many peaks are. Few
// other values are, since `count` is small beside the number of threads.
struct PeakBins {
  ValueBins bins;
  int lowest = 0;
  bool valid = false;
};

__device__ inline PeakBins FindPeakBins(RowBlock& block, int count) {
  const float highest = ScoreOf(block.highest);
  const float lowest = block.lowest_peak;
  // Of a longer row, at least so many threads have a value.
  if (block.vocab_size <= kMaxCandidates || count > kMaxCandidates) return {};
  if (!(highest > lowest && highest - lowest < __builtin_huge_valf())) return {};
  const ValueBins bins = {highest, float(kBins - 1) / (highest - lowest)};
  ClearHistogram(block);
  if (int(threadIdx.x) < block.width) {
    atomicAdd(&block.shared->histogram.count[bins.Of(block.peak)][threadIdx.x % kReplicas], 1u);
  }
  return {bins, FindBin<CountMeasure>(block, 0, uint64_t(count)).bin, true};
}

// Puts the `count` highest keys, at most kMaxCandidates and the row's, first into shared->sorted.
__device__ inline void GatherHighest(RowBlock& block, int count) {
  const PeakBins peaks = FindPeakBins(block, count);
  if (peaks.valid) {
    const int gathered = GatherSorted(block, [&](float value, int id) {
      return peaks.bins.Of(value) >= peaks.lowest ? RankKey(value, id) : 0;
    });
    if (gathered <= kMaxCandidates) return;
  }
  const KeyRange range = Narrow(block, CountMeasure(), uint64_t(count), /*with_above=*/true);
  GatherRange(block, range.low, ~uint64_t{0});
}

}  // namespace moed::backend
