// The choice of a token from a row in a cluster's shared memory: greedy, or by a draw among what
// top-k, top-p and min-p leave. Sets that are small, as they mostly are, are sorted by every block
// for itself; others are found by histograms.
#pragma once

#include <cstdint>

#include "runtime/backend/cuda/sampling/row_select.cuh"
#include "runtime/backend/row_sampler.h"

namespace moed::backend {

struct RowArguments {
  RowSampling sampling;
  const float* logits = nullptr;                 // [V]
  const LogitAdjustment* adjustments = nullptr;  // the row's
  SampledRow* result = nullptr;
};

// By one thread of the cluster.
__device__ inline void WriteToken(const RowArguments& row, int token, double log_sum) {
  row.result->token = token;
  row.result->invalid = 0;
  if (row.sampling.logprobs >= 0) row.result->logprob = float(row.logits[token] - log_sum);
}

// The smallest sum that is at least `fraction` of `total`.
__device__ inline uint64_t SumReaching(float fraction, uint64_t total) {
  const auto sum = __double2ull_ru(double(fraction) * double(total));
  return min(max(uint64_t{sum}, uint64_t{1}), total);
}
// The smallest sum that exceeds `draw` of `total`.
__device__ inline uint64_t SumBeyond(double draw, uint64_t total) {
  return min(uint64_t{__double2ull_rd(draw * double(total))} + 1, total);
}

// Of the `sampling.top_k` highest, which are few: in every block alike.
__device__ inline int ChooseAmongFew(RowBlock& block, const RowSampling& sampling,
                                     const ExponentialMeasure& measure) {
  GatherHighest(block, sampling.top_k);
  float weights[2];
  uint64_t kept[2];
  uint64_t first_below = kMaxCandidates;  // the first that min-p drops
  for (int i = 1; i >= 0; --i) {
    const int place = 2 * int(threadIdx.x) + i;
    weights[i] =
        place < sampling.top_k ? measure.Weight(ScoreOf(block.shared->sorted[place])) : 0.0f;
    kept[i] = ToFixed(weights[i]);
    if (place >= sampling.top_k || weights[i] < sampling.min_p) first_below = place;
  }
  // The least is the highest complement.
  int num_kept = int(~BlockReduce(block, ~first_below, MaxOf()));
  if (sampling.top_p < 1) {
    const uint64_t total = BlockReduce(block, kept[0] + kept[1], SumOf());
    num_kept = min(num_kept, PlaceReaching(block, kept, 0, SumReaching(sampling.top_p, total)) + 1);
  }
  for (int i = 0; i < 2; ++i) {
    if (2 * int(threadIdx.x) + i >= num_kept) kept[i] = 0;
  }
  const uint64_t total = BlockReduce(block, kept[0] + kept[1], SumOf());
  return IdOf(block.shared->sorted[PlaceReaching(block, kept, 0, SumBeyond(sampling.draw, total))]);
}

__device__ inline uint64_t TotalOf(RowBlock& block, const ExponentialMeasure& measure) {
  uint64_t sum = 0;
  for (int i = threadIdx.x; i < block.width; i += kRowThreads) {
    sum += measure(RankKey(block.values[i], block.first + i));
  }
  return RowReduce(block, sum, SumOf());
}

// The highest key that min-p drops, or 0.
__device__ inline uint64_t FirstBelow(RowBlock& block, const ExponentialMeasure& measure,
                                      float min_p) {
  uint64_t below = 0;
  for (int i = threadIdx.x; i < block.width; i += kRowThreads) {
    const uint64_t key = RankKey(block.values[i], block.first + i);
    if (measure.Weight(block.values[i]) < min_p) below = MaxOf()(below, key);
  }
  return RowReduce(block, below, MaxOf());
}

// Of the `sampling.top_k` highest, which are too many to sort.
__device__ inline int ChooseAmongMany(RowBlock& block, const RowSampling& sampling,
                                      ExponentialMeasure measure) {
  measure.floor = SelectKey(block, CountMeasure(), uint64_t(sampling.top_k));
  uint64_t floor = measure.floor;
  if (sampling.top_p < 1) {
    const uint64_t wanted = SumReaching(sampling.top_p, TotalOf(block, measure));
    floor = MaxOf()(floor, SelectKey(block, measure, wanted));
  }
  if (sampling.min_p > 0) {
    floor = MaxOf()(floor, FirstBelow(block, measure, sampling.min_p) + 1);
  }
  measure.floor = floor;
  const uint64_t total = TotalOf(block, measure);
  return IdOf(SelectKey(block, measure, SumBeyond(sampling.draw, total)));
}

// Without top-k: in the order of ids, ranked by weight. Each thread has values that follow one
// another, an odd number, so that a warp's lie in different banks.
struct ThreadSlice {
  int begin = 0;
  int end = 0;
  __device__ explicit ThreadSlice(const RowBlock& block) {
    const int width = (block.width + kRowThreads - 1) / kRowThreads | 1;
    begin = min(int(threadIdx.x) * width, block.width);
    end = min(begin + width, block.width);
  }
};

// The mass of a thread's weights that rank from `floor` on.
__device__ inline uint64_t MassFrom(const RowBlock& block, const ThreadSlice& slice,
                                    uint64_t floor) {
  uint64_t sum = 0;
  for (int i = slice.begin; i < slice.end; ++i) {
    const uint64_t key = RankKey(block.values[i], block.first + i);
    if (key >= floor) sum += ToFixed(block.values[i]);
  }
  return sum;
}

// The same of the weights that take the place of the values.
__device__ inline uint64_t WeighFrom(const RowBlock& block, const ExponentialMeasure& measure,
                                     const ThreadSlice& slice, uint64_t floor) {
  uint64_t sum = 0;
  for (int i = slice.begin; i < slice.end; ++i) {
    const float weight = measure.Weight(block.values[i]);
    block.values[i] = weight;
    if (RankKey(weight, block.first + i) >= floor) sum += ToFixed(weight);
  }
  return sum;
}

// The choice if the nucleus, in which weights reach `wanted`, ends among the highest few; else -1.
// In every block alike.
__device__ inline int ChooseInNucleus(RowBlock& block, const RowSampling& sampling,
                                      const ExponentialMeasure& measure, uint64_t floor,
                                      uint64_t wanted) {
  constexpr int kFew = 256;
  const PeakBins peaks = FindPeakBins(block, kFew);
  if (!peaks.valid) return -1;
  const int count = GatherSorted(block, [&](float logit, int id) {
    return peaks.bins.Of(logit) >= peaks.lowest ? RankKey(measure.Weight(logit), id) : 0;
  });
  if (count > kMaxCandidates) return -1;
  uint64_t* sorted = block.shared->sorted;
  uint64_t keys[2], masses[2];
  for (int i = 0; i < 2; ++i) {
    const int place = 2 * int(threadIdx.x) + i;
    keys[i] = place < count ? sorted[place] : 0;
    masses[i] = place < count ? ToFixed(ScoreOf(keys[i])) : 0;
  }
  if (BlockReduce(block, masses[0] + masses[1], SumOf()) < wanted) return -1;
  const uint64_t end = sorted[PlaceReaching(block, masses, 0, wanted)];
  // Values that were not gathered may weigh as much as the lowest that was.
  if (end >> 32 == sorted[count - 1] >> 32) return -1;
  floor = MaxOf()(floor, end);
  const uint64_t here = (keys[0] >= floor ? 1 : 0) + (keys[1] >= floor ? 1 : 0);
  const int num_kept = int(BlockReduce(block, here, SumOf()));
  // Drawn in the order of ids: halves of the keys change places.
  for (int i = 0; i < 2; ++i) {
    if (keys[i] >= floor) sorted[2 * threadIdx.x + i] = keys[i] << 32 | keys[i] >> 32;
  }
  SortFalling(block, num_kept);
  for (int i = 0; i < 2; ++i) {
    const int place = 2 * int(threadIdx.x) + i;
    masses[i] = place < num_kept ? ToFixed(ScoreOf(sorted[place] << 32)) : 0;
  }
  const uint64_t total = BlockReduce(block, masses[0] + masses[1], SumOf());
  const int place = PlaceReaching(block, masses, 0, SumBeyond(sampling.draw, total));
  return int(~uint32_t(sorted[place] >> 32));
}

// The one thread whose values hold the token writes it.
__device__ inline void ChooseAmongAll(RowBlock& block, const RowArguments& row,
                                      const ExponentialMeasure& measure, double log_sum) {
  const RowSampling& sampling = row.sampling;
  const ThreadSlice slice(block);
  // The highest weight is 1, so min-p is a threshold on the weights themselves.
  uint64_t floor = RankKey(sampling.min_p, block.vocab_size);
  uint64_t mass = 0;
  if (sampling.top_p < 1) {
    const uint64_t wanted = SumReaching(sampling.top_p, TotalOf(block, measure));
    const int token = ChooseInNucleus(block, sampling, measure, floor, wanted);
    if (token >= 0) {
      if (block.rank == 0 && threadIdx.x == 0) WriteToken(row, token, log_sum);
      return;
    }
    WeighFrom(block, measure, slice, 0);
    floor = MaxOf()(floor, SelectKey(block, WeightMeasure(), wanted));
    mass = MassFrom(block, slice, floor);
  } else {
    mass = WeighFrom(block, measure, slice, floor);
  }
  const RowSum sum = RowSumBefore(block, mass);
  const uint64_t wanted = SumBeyond(sampling.draw, sum.total);
  if (wanted <= sum.before || wanted > sum.before + mass) return;
  uint64_t reached = sum.before;
  int i = slice.begin - 1;
  while (reached < wanted) {
    ++i;
    if (RankKey(block.values[i], block.first + i) >= floor) reached += ToFixed(block.values[i]);
  }
  WriteToken(row, block.first + i, log_sum);
}

__device__ inline void Choose(RowBlock& block, const RowArguments& row, double log_sum) {
  const RowSampling& sampling = row.sampling;
  const ExponentialMeasure measure = {ScoreOf(block.highest), sampling.inverse_temperature, 0};
  int token = IdOf(block.highest);
  if (sampling.inverse_temperature > 0) {
    if (sampling.top_k <= 0 || sampling.top_k >= block.vocab_size) {
      ChooseAmongAll(block, row, measure, log_sum);
      return;
    }
    token = sampling.top_k <= kMaxCandidates ? ChooseAmongFew(block, sampling, measure)
                                             : ChooseAmongMany(block, sampling, measure);
  }
  if (block.rank == 0 && threadIdx.x == 0) WriteToken(row, token, log_sum);
}

}  // namespace moed::backend
