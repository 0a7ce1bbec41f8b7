// A row of logits in the shared memory of a cluster: each block holds a slice, ids in order of
// ranks, and a pass over the row is a pass over 20 thousand values of shared memory. Here is what
// such passes are made of: sums and maxima over the row, the same in every thread of every block.
//
// Sums are of integers, weights in units of 2^-43, so that they do not depend on any order.
#pragma once

#include <cstdint>

#include "runtime/backend/cuda/primitives/cluster.cuh"

namespace moed::backend {

constexpr int kRowThreads = 512;
constexpr int kRowWarps = kRowThreads / 32;
constexpr int kRowBlocks = 8;  // of a cluster: the most that every device grants
constexpr int kBins = 256;
constexpr int kReplicas = 4;  // of a bin, so that the lanes of a warp meet less often
constexpr int kMaxCandidates = 2 * kRowThreads;

// Of a block's slice. Mass in two words: shared memory adds 32 bits at a time.
struct RowHistogram {
  uint32_t count[kBins][kReplicas];
  uint32_t mass_low[kBins][kReplicas];
  uint32_t mass_high[kBins][kReplicas];
};

// What others read is there twice: while a slow block reads the one, a fast one writes the other.
struct RowShared {
  uint64_t exchanged[2][2];
  uint64_t bin_mass[2][kBins];
  uint32_t bin_count[2][kBins];
  uint32_t num_gathered[2];
  uint64_t gathered[2][kMaxCandidates];
  union {
    RowHistogram histogram;
    uint64_t sorted[kMaxCandidates];
  };
  uint64_t warp_values[kRowWarps];
  uint64_t found[3];
};

struct RowBlock {
  RowShared* shared = nullptr;
  float* values = nullptr;  // [width]: the slice, in shared memory
  int first = 0;            // id of values[0]
  int width = 0;            // may be 0
  int rank = 0;
  int vocab_size = 0;
  int phase = 0;  // counts ClusterSync, for the choice between the two of each
  // Of the values as they are: the row's highest key (row_select.cuh), the highest value that this
  // thread passes over, and the lowest such one of all threads.
  uint64_t highest = 0;
  float peak = 0;
  float lowest_peak = 0;
};

struct MaxOf {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};
struct SumOf {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};

template <typename Op>
__device__ uint64_t WarpReduce(uint64_t value, Op op) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const unsigned long long mine = value;
    value = op(value, __shfl_xor_sync(0xffffffffu, mine, offset));
  }
  return value;
}

template <typename Op>
__device__ uint64_t BlockReduce(const RowBlock& block, uint64_t value, Op op) {
  value = WarpReduce(value, op);
  __syncthreads();  // the last reduction's values have been read
  if (threadIdx.x % 32 == 0) block.shared->warp_values[threadIdx.x / 32] = value;
  __syncthreads();
  uint64_t result = block.shared->warp_values[0];
#pragma unroll
  for (int warp = 1; warp < kRowWarps; ++warp) {
    result = op(result, block.shared->warp_values[warp]);
  }
  return result;
}

// The sum of the values of all threads before this one.
__device__ inline uint64_t BlockSumBefore(const RowBlock& block, uint64_t value) {
  const int lane = threadIdx.x % 32;
  unsigned long long sum = value;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const unsigned long long below = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += below;
  }
  __syncthreads();  // the last reduction's values have been read
  if (lane == 31) block.shared->warp_values[threadIdx.x / 32] = sum;
  __syncthreads();
  uint64_t before = sum - value;
  for (int warp = 0; warp < int(threadIdx.x) / 32; ++warp) {
    before += block.shared->warp_values[warp];
  }
  return before;
}

struct Pair {
  uint64_t first = 0;
  uint64_t second = 0;
};

// Lane r of every warp gets the values of block r, lanes beyond the blocks 0.
__device__ inline Pair Exchange(RowBlock& block, Pair values) {
  uint64_t* place = block.shared->exchanged[block.phase % 2];
  if (threadIdx.x == 0) {
    place[0] = values.first;
    place[1] = values.second;
  }
  ClusterSync();
  ++block.phase;
  const int lane = threadIdx.x % 32;
  if (lane >= kRowBlocks) return {};
  const uint64_t* of_lane = InBlock(place, lane);
  return {of_lane[0], of_lane[1]};
}

// Over all threads of all blocks; 0 is neutral.
template <typename Op>
__device__ Pair RowReduce(RowBlock& block, Pair values, Op op) {
  const Pair of_lane = Exchange(
      block, {BlockReduce(block, values.first, op), BlockReduce(block, values.second, op)});
  return {WarpReduce(of_lane.first, op), WarpReduce(of_lane.second, op)};
}
template <typename Op>
__device__ uint64_t RowReduce(RowBlock& block, uint64_t value, Op op) {
  return WarpReduce(Exchange(block, {BlockReduce(block, value, op), 0}).first, op);
}

struct RowSum {
  uint64_t before = 0;  // of all threads before this one, in order of ids
  uint64_t total = 0;
};

__device__ inline RowSum RowSumBefore(RowBlock& block, uint64_t value) {
  const uint64_t in_block = BlockSumBefore(block, value);
  const uint64_t block_total = BlockReduce(block, value, SumOf());
  const uint64_t of_lane = Exchange(block, {block_total, 0}).first;
  const bool is_before = int(threadIdx.x % 32) < block.rank;
  return {in_block + WarpReduce(is_before ? of_lane : 0, SumOf()), WarpReduce(of_lane, SumOf())};
}

}  // namespace moed::backend
