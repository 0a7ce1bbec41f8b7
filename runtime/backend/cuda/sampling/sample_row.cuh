// One row of logits, sampled by one cluster (row_block.cuh): what RowSampler promises. A greedy row
// is a pass and an exchange between blocks, one with a temperature two of each.
#pragma once

#include <cmath>
#include <cstdint>

#include "runtime/backend/cuda/sampling/choose_token.cuh"
#include "runtime/backend/cuda/sampling/row_select.cuh"
#include "runtime/backend/row_sampler.h"

namespace moed::backend {

constexpr float kRowInfinity = __builtin_huge_valf();

// Keys of NaN and +infinity are above those of all other values.
__device__ inline uint64_t CheckedKey(float logit, int id) {
  return logit < kRowInfinity ? RankKey(logit, id) : ~uint64_t{0};
}
__device__ inline bool IsValidHighest(uint64_t highest) {
  return highest != ~uint64_t{0} && ScoreOf(highest) > -kRowInfinity;
}

// Of the highest key of each thread's values, 0 where a thread has none.
__device__ inline void SetPeaks(RowBlock& block, uint64_t peak) {
  // The least is the highest complement.
  const uint64_t complement = peak == 0 ? 0 : ~peak;
  const Pair reduced = RowReduce(block, {peak, complement}, MaxOf());
  block.highest = reduced.first;
  block.peak = ScoreOf(peak);
  block.lowest_peak = ScoreOf(~reduced.second);
}

// Puts the slice into shared memory. Many loads are under way at a time.
__device__ inline void LoadRow(RowBlock& block, const float* logits) {
  constexpr int kAhead = 20;
  const float* slice = logits + block.first;
  uint64_t peak = 0;
  for (int begin = threadIdx.x; begin < block.width; begin += kAhead * kRowThreads) {
    float ahead[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int i = begin + j * kRowThreads;
      if (i < block.width) ahead[j] = slice[i];
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int i = begin + j * kRowThreads;
      if (i >= block.width) break;
      block.values[i] = ahead[j];
      peak = MaxOf()(peak, CheckedKey(ahead[j], block.first + i));
    }
  }
  SetPeaks(block, peak);
}

__device__ inline void FindPeaks(RowBlock& block) {
  uint64_t peak = 0;
  for (int i = threadIdx.x; i < block.width; i += kRowThreads) {
    peak = MaxOf()(peak, CheckedKey(block.values[i], block.first + i));
  }
  SetPeaks(block, peak);
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

__device__ inline void SampleRow(RowBlock& block, const RowArguments& row) {
  const RowSampling& sampling = row.sampling;
  LoadRow(block, row.logits);
  bool valid = IsValidHighest(block.highest);
  double log_sum = 0;
  if (valid && sampling.logprobs >= 0) {
    log_sum = LogOfSum(block, ScoreOf(block.highest));
    if (sampling.logprobs > 0) WriteTopLogprobs(block, sampling.logprobs, log_sum, row.result);
  }
  if (valid && sampling.token >= 0) {
    if (block.rank == 0 && threadIdx.x == 0) WriteToken(row, sampling.token, log_sum);
    return;
  }
  if (valid && sampling.num_penalties + sampling.num_biases + sampling.num_forbidden > 0) {
    Adjust(block, row);
    FindPeaks(block);
    valid = IsValidHighest(block.highest);
  }
  if (valid) {
    Choose(block, row, log_sum);
  } else if (block.rank == 0 && threadIdx.x == 0) {
    row.result->invalid = 1;
  }
}

}  // namespace moed::backend
