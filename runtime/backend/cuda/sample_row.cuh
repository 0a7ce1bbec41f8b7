// One row of logits, sampled by one cluster (row_block.cuh): what RowSampler promises. A greedy row
// is a pass and one exchange between blocks, one with a temperature two passes and two exchanges;
// each histogram of top-k and top-p is a pass and an exchange more.
#pragma once

#include <cmath>
#include <cstdint>

#include "runtime/backend/cuda/row_select.cuh"
#include "runtime/backend/row_sampler.h"

namespace moed::backend {

struct RowArguments {
  RowSampling sampling;
  const float* logits = nullptr;                 // [V]
  const LogitAdjustment* adjustments = nullptr;  // the row's
  SampledRow* result = nullptr;
};

constexpr float kRowInfinity = __builtin_huge_valf();

// Keys of NaN and +infinity are above those of all other values.
__device__ inline uint64_t CheckedKey(float logit, int id) {
  return logit < kRowInfinity ? RankKey(logit, id) : ~uint64_t{0};
}
__device__ inline bool IsValidHighest(uint64_t highest) {
  return highest != ~uint64_t{0} && ScoreOf(highest) > -kRowInfinity;
}

// Puts the slice into shared memory. Returns the row's highest key.
__device__ inline uint64_t LoadRow(RowBlock& block, const float* logits) {
  const float* slice = logits + block.first;
  uint64_t highest = 0;
#pragma unroll 8
  for (int i = threadIdx.x; i < block.width; i += kRowThreads) {
    const float logit = slice[i];
    block.values[i] = logit;
    highest = MaxOf()(highest, CheckedKey(logit, block.first + i));
  }
  return RowReduce(block, highest, MaxOf());
}

__device__ inline uint64_t FindHighest(RowBlock& block) {
  uint64_t highest = 0;
  for (int i = threadIdx.x; i < block.width; i += kRowThreads) {
    highest = MaxOf()(highest, CheckedKey(block.values[i], block.first + i));
  }
  return RowReduce(block, highest, MaxOf());
}

// The natural log of the sum of the values' exponentials.
__device__ inline double LogOfSum(RowBlock& block, float maximum) {
  uint64_t sum = 0;
  for (int i = threadIdx.x; i < block.width; i += kRowThreads) {
    sum += ToFixed(Exponential(__fsub_rn(block.values[i], maximum)));
  }
  return double(maximum) + log(FromFixed(RowReduce(block, sum, SumOf())));
}

__device__ inline void WriteTopLogprobs(RowBlock& block, int count, double log_sum,
                                        SampledRow* result) {
  count = min(count, block.vocab_size);
  GatherHighest(block, count);
  const int place = threadIdx.x;
  if (block.rank != 0 || place >= count) return;
  const uint64_t key = block.shared->sorted[place];
  result->top_tokens[place] = IdOf(key);
  result->top_logprobs[place] = float(ScoreOf(key) - log_sum);
}

// By one thread of the cluster.
__device__ inline void WriteToken(const RowArguments& row, int token, double log_sum) {
  row.result->token = token;
  row.result->invalid = 0;
  if (row.sampling.logprobs >= 0) row.result->logprob = float(row.logits[token] - log_sum);
}

__device__ inline void Adjust(const RowBlock& block, const RowArguments& row) {
  const RowSampling& sampling = row.sampling;
  const LogitAdjustment* adjustment = row.adjustments;
  const auto value_of = [&](int token) -> float* {
    const int i = token - block.first;
    return i >= 0 && i < block.width ? &block.values[i] : nullptr;
  };
  for (int i = threadIdx.x; i < sampling.num_penalties; i += kRowThreads) {
    float* value = value_of(adjustment[i].token);
    if (value == nullptr) continue;
    const float repeated = *value < 0 ? __fmul_rn(*value, sampling.repetition_penalty)
                                      : __fdiv_rn(*value, sampling.repetition_penalty);
    *value = __fsub_rn(repeated, adjustment[i].value);
  }
  __syncthreads();
  adjustment += sampling.num_penalties;
  for (int i = threadIdx.x; i < sampling.num_biases; i += kRowThreads) {
    const int token = adjustment[i].token;
    float* value = value_of(token);
    // The first of a token's biases adds all, in order.
    if (value == nullptr || (i > 0 && adjustment[i - 1].token == token)) continue;
    for (int j = i; j < sampling.num_biases && adjustment[j].token == token; ++j) {
      *value = __fadd_rn(*value, adjustment[j].value);
    }
  }
  __syncthreads();
  adjustment += sampling.num_biases;
  for (int i = threadIdx.x; i < sampling.num_forbidden; i += kRowThreads) {
    float* value = value_of(adjustment[i].token);
    if (value != nullptr) *value = -kRowInfinity;
  }
  __syncthreads();
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

// The one thread whose values hold the token writes it.
__device__ inline void ChooseAmongAll(RowBlock& block, const RowArguments& row,
                                      const ExponentialMeasure& measure, double log_sum) {
  const RowSampling& sampling = row.sampling;
  const ThreadSlice slice(block);
  for (int i = slice.begin; i < slice.end; ++i) {
    block.values[i] = measure.Weight(block.values[i]);
  }
  // The highest weight is 1, so min-p is a threshold on the weights themselves.
  uint64_t floor = RankKey(sampling.min_p, block.vocab_size);
  uint64_t mass = 0;
  if (sampling.top_p < 1) {
    const uint64_t total = RowReduce(block, MassFrom(block, slice, 0), SumOf());
    floor = MaxOf()(floor, SelectKey(block, WeightMeasure(), SumReaching(sampling.top_p, total)));
  }
  mass = MassFrom(block, slice, floor);
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

__device__ inline void Choose(RowBlock& block, const RowArguments& row, uint64_t highest,
                              double log_sum) {
  const RowSampling& sampling = row.sampling;
  const ExponentialMeasure measure = {ScoreOf(highest), sampling.inverse_temperature, 0};
  int token = IdOf(highest);
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

__device__ inline void SampleRow(RowBlock& block, const RowArguments& row) {
  const RowSampling& sampling = row.sampling;
  uint64_t highest = LoadRow(block, row.logits);
  bool valid = IsValidHighest(highest);
  double log_sum = 0;
  if (valid && sampling.logprobs >= 0) {
    log_sum = LogOfSum(block, ScoreOf(highest));
    if (sampling.logprobs > 0) WriteTopLogprobs(block, sampling.logprobs, log_sum, row.result);
  }
  if (valid && sampling.token >= 0) {
    if (block.rank == 0 && threadIdx.x == 0) WriteToken(row, sampling.token, log_sum);
    return;
  }
  if (valid && sampling.num_penalties + sampling.num_biases + sampling.num_forbidden > 0) {
    Adjust(block, row);
    highest = FindHighest(block);
    valid = IsValidHighest(highest);
  }
  if (valid) {
    Choose(block, row, highest, log_sum);
  } else if (block.rank == 0 && threadIdx.x == 0) {
    row.result->invalid = 1;
  }
}

}  // namespace moed::backend
