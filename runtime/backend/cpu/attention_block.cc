#include "runtime/backend/cpu/attention_block.h"

#include <algorithm>
#include <limits>
#include <span>

#include "runtime/backend/cpu/few_queries.h"
#include "runtime/backend/cpu/kv_layout.h"
#include "runtime/backend/cpu/panel.h"
#include "runtime/backend/cpu/panel_product.h"

namespace moed::backend {
namespace {

constexpr int64_t kTilePanels = kTileKeys / kPanelColumns;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Keys of the tile at key_begin that the query at `position` sees.
VisibleKeys VisibleInTile(const AttentionSpec& spec, const AttentionBlock& block, int64_t position,
                          int64_t key_begin) {
  const int64_t oldest =
      spec.sliding_window > 0 ? std::max<int64_t>(0, position + 1 - spec.sliding_window) : 0;
  const int64_t end = std::min(block.key_end, position + 1);
  return {.begin = std::clamp<int64_t>(oldest - key_begin, 0, kTileKeys),
          .end = std::clamp<int64_t>(end - key_begin, 0, kTileKeys)};
}

// Asks memory for a row: the next tile's blocks lie anywhere.
void PrefetchRow(const BFloat16* row, int64_t head_dim) {
  constexpr int64_t kLineElements = 64 / sizeof(BFloat16);
  constexpr int kSecondLevelCache = 2;
  for (int64_t i = 0; i < head_dim; i += kLineElements) {
    __builtin_prefetch(row + i, 0, kSecondLevelCache);
  }
}

}  // namespace

void BlockAttention::Run(const AttentionSpec& spec, const AttentionBlock& block, const Tensor& q,
                         const KvLayer& cache) {
  Reset(spec, block, q);
  std::array<TileRows, 2> tiles;
  FindTile(spec, block, cache, block.key_begin, &tiles[0]);
  int current = 0;
  for (int64_t key = block.key_begin; key < block.key_end; key += kTileKeys) {
    FindTile(spec, block, cache, key + kTileKeys, &tiles[1 - current]);
    Score(spec, block, tiles[current]);
    Weigh(spec, block, key);
    AddValues(spec, block, tiles[current]);
    current = 1 - current;
  }
  if (few_) JoinSplitSums(spec, block);
}

void BlockAttention::FindTile(const AttentionSpec& spec, const AttentionBlock& block,
                              const KvLayer& cache, int64_t key_begin, TileRows* tile) {
  tile->count = std::clamp<int64_t>(block.key_end - key_begin, 0, kTileKeys);
  int64_t slot = key_begin % cache.block_tokens;
  int64_t index = key_begin / cache.block_tokens;
  for (int64_t i = 0; i < tile->count; ++i) {
    const int64_t offset =
        KvOffset(spec, cache, block.segment->kv_blocks[index], slot, block.kv_head);
    tile->keys[i] = cache.keys.As<BFloat16>() + offset;
    tile->values[i] = cache.values.As<BFloat16>() + offset;
    PrefetchRow(tile->keys[i], spec.head_dim);
    PrefetchRow(tile->values[i], spec.head_dim);
    if (++slot == cache.block_tokens) {
      slot = 0;
      ++index;
    }
  }
}

void BlockAttention::Reset(const AttentionSpec& spec, const AttentionBlock& block,
                           const Tensor& q) {
  few_ = block.num_queries <= kFewQueries && FewQueriesFit(spec.head_dim);
  depth_ = RoundUp(spec.head_dim, 2);
  width_ = RoundUp(spec.head_dim, kPanelColumns);
  key_panels_.resize(depth_ * kTileKeys);
  value_panels_.resize(width_ * kTileKeys);
  scores_.resize(block.num_queries * kTileKeys);
  weights_.resize(block.num_queries * kTileKeys);
  sums_.assign(block.num_queries * width_, 0.0f);
  softmax_.assign(block.num_queries, {-std::numeric_limits<float>::infinity(), 0.0f});
  queries_.assign(block.num_queries * depth_, 0.0f);
  LoadQueries(spec, block, q);
}

void BlockAttention::LoadQueries(const AttentionSpec& spec, const AttentionBlock& block,
                                 const Tensor& q) {
  const int64_t group = spec.query_heads / spec.kv_heads;
  const int64_t half = spec.head_dim / 2;
  for (int64_t i = 0; i < block.num_queries; ++i) {
    const int64_t query = block.query_begin + i;
    const int64_t token = block.segment->first_row + query / group;
    const int64_t head = block.kv_head * group + query % group;
    const float* from = q.As<float>() + (token * spec.query_heads + head) * spec.head_dim;
    const PackedRow to = PackedRowAt(i, block.num_queries, depth_);
    for (int64_t k = 0; k < spec.head_dim; ++k) {
      const int64_t place =
          few_ ? i * spec.head_dim + k % 2 * half + k / 2 : to.offset + k * to.depth_stride;
      queries_[place] = from[k] * spec.scale;
    }
  }
}

void BlockAttention::Score(const AttentionSpec& spec, const AttentionBlock& block,
                           const TileRows& tile) {
  const std::span<const BFloat16* const> keys(tile.keys.data(), tile.count);
  if (few_) {
    ScoreFewQueries(queries_.data(), block.num_queries, keys, spec.head_dim, scores_.data(),
                    kTileKeys);
    return;
  }
  for (int64_t p = 0; p < kTilePanels; ++p) {
    const int64_t first = std::min(tile.count, p * kPanelColumns);
    PackColumns(keys.subspan(first, std::min(tile.count - first, kPanelColumns)), spec.head_dim,
                depth_, key_panels_.data() + p * depth_ * kPanelColumns);
  }
  std::fill_n(scores_.begin(), block.num_queries * kTileKeys, 0.0f);
  AccumulatePanels({.a = queries_.data(),
                    .rows = block.num_queries,
                    .depth = depth_,
                    .panels = key_panels_.data(),
                    .panel_stride = depth_ * kPanelColumns,
                    .num_panels = kTilePanels,
                    .c = scores_.data(),
                    .c_stride = kTileKeys},
                   0, depth_);
}

void BlockAttention::Weigh(const AttentionSpec& spec, const AttentionBlock& block,
                           int64_t key_begin) {
  const int64_t group = spec.query_heads / spec.kv_heads;
  for (int64_t i = 0; i < block.num_queries; ++i) {
    const int64_t position = block.segment->context_start + (block.query_begin + i) / group;
    const VisibleKeys visible = VisibleInTile(spec, block, position, key_begin);
    const PackedRow to =
        few_ ? PackedRow{i * kTileKeys, 1} : PackedRowAt(i, block.num_queries, kTileKeys);
    float* weights = weights_.data() + to.offset;
    if (visible.begin >= visible.end) {
      for (int64_t j = 0; j < kTileKeys; ++j) weights[j * to.depth_stride] = 0;
      continue;
    }
    SoftmaxTileRow(scores_.data() + i * kTileKeys, visible, &softmax_[i], weights, to.depth_stride,
                   sums_.data() + i * width_, width_);
  }
}

void BlockAttention::AddValues(const AttentionSpec& spec, const AttentionBlock& block,
                               const TileRows& tile) {
  const std::span<const BFloat16* const> values(tile.values.data(), tile.count);
  if (few_) {
    AddWeightedFewQueries(weights_.data(), kTileKeys, block.num_queries, values, spec.head_dim,
                          sums_.data(), width_);
    return;
  }
  PackRows(values, spec.head_dim, kTileKeys, value_panels_.data());
  AccumulatePanels({.a = weights_.data(),
                    .rows = block.num_queries,
                    .depth = kTileKeys,
                    .panels = value_panels_.data(),
                    .panel_stride = kTileKeys * kPanelColumns,
                    .num_panels = width_ / kPanelColumns,
                    .c = sums_.data(),
                    .c_stride = width_},
                   0, kTileKeys);
}

void BlockAttention::JoinSplitSums(const AttentionSpec& spec, const AttentionBlock& block) {
  const int64_t half = spec.head_dim / 2;
  std::vector<float> row(spec.head_dim);
  for (int64_t i = 0; i < block.num_queries; ++i) {
    float* sums = sums_.data() + i * width_;
    for (int64_t k = 0; k < spec.head_dim; ++k) row[k] = sums[k % 2 * half + k / 2];
    std::copy(row.begin(), row.end(), sums);
  }
}

}  // namespace moed::backend
