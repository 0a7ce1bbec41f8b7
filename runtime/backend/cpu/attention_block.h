// The inner part of attention on the CPU: some query rows of one KV head against a range of keys,
// tile by tile, with an online softmax. A few queries read keys and values where they lie
// (few_queries.h). For more, both products run on panels (panel.h): a tile's keys are packed as
// columns, its values as rows, once for all query rows of the block.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "runtime/backend/backend.h"
#include "runtime/backend/cpu/softmax_tile.h"

namespace moed::backend {

// Query rows of a block at most: their float32 rows, scores and sums fit the second-level cache.
constexpr int64_t kMaxBlockQueries = 100;

// The queries of one KV head in a segment, counted token by token, its query heads side by side:
// query i is token i / group, head kv_head * group + i % group.
struct AttentionBlock {
  const AttentionSegment* segment = nullptr;
  int kv_head = 0;
  int64_t query_begin = 0;
  int64_t num_queries = 0;  // <= kMaxBlockQueries
  int64_t key_begin = 0;    // positions; the causal and window limits apply besides
  int64_t key_end = 0;
};

// Scratch and result of one block. One per worker, reused from block to block.
class BlockAttention {
 public:
  // q [T, hq * D] f32.
  void Run(const AttentionSpec& spec, const AttentionBlock& block, const Tensor& q,
           const KvLayer& cache);

  // After Run: sums of weighted values, [num_queries][width], not yet divided by softmax().sum.
  const float* sums(int64_t query) const { return sums_.data() + query * width_; }
  const RunningSoftmax& softmax(int64_t query) const { return softmax_[query]; }

 private:
  // Where the keys and values of one tile lie.
  struct TileRows {
    int64_t count = 0;
    std::array<const BFloat16*, kTileKeys> keys;
    std::array<const BFloat16*, kTileKeys> values;
  };

  void Reset(const AttentionSpec& spec, const AttentionBlock& block, const Tensor& q);
  void LoadQueries(const AttentionSpec& spec, const AttentionBlock& block, const Tensor& q);
  // Finds the rows of the tile at `key_begin` and asks memory for them.
  static void FindTile(const AttentionSpec& spec, const AttentionBlock& block, const KvLayer& cache,
                       int64_t key_begin, TileRows* tile);
  void Score(const AttentionSpec& spec, const AttentionBlock& block, const TileRows& tile);
  void Weigh(const AttentionSpec& spec, const AttentionBlock& block, int64_t key_begin);
  void AddValues(const AttentionSpec& spec, const AttentionBlock& block, const TileRows& tile);
  void JoinSplitSums(const AttentionSpec& spec, const AttentionBlock& block);

  bool few_ = false;            // this block runs the kernels for few queries
  int64_t depth_ = 0;           // D rounded up to a multiple of 2
  int64_t width_ = 0;           // D rounded up to a multiple of 16
  std::vector<float> queries_;  // scaled: tiles [depth_][rows]; few: [num_queries][D], split
  std::vector<float> scores_;   // [num_queries][kTileKeys]
  std::vector<float> weights_;  // tiles [kTileKeys][rows]; few: [num_queries][kTileKeys]
  std::vector<float> sums_;     // [num_queries][width_]; few: split until the end
  std::vector<RunningSoftmax> softmax_;
  std::vector<BFloat16> key_panels_;    // [kTileKeys / 16][depth_ / 2][16][2]
  std::vector<BFloat16> value_panels_;  // [width_ / 16][kTileKeys / 2][16][2]
};

}  // namespace moed::backend
