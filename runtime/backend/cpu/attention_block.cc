#include "runtime/backend/cpu/attention_block.h"

#include <algorithm>
#include <array>
#include <limits>

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

}  // namespace

void BlockAttention::Run(const AttentionSpec& spec, const AttentionBlock& block, const Tensor& q,
                         const KvLayer& cache) {
  Reset(spec, block, q);
  for (int64_t key = block.key_begin; key < block.key_end; key += kTileKeys) {
    PackTile(spec, block, cache, key, std::min(block.key_end, key + kTileKeys));
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
    WeighTile(spec, block, key);
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
}

void BlockAttention::Reset(const AttentionSpec& spec, const AttentionBlock& block,
                           const Tensor& q) {
  depth_ = RoundUp(spec.head_dim, 2);
  width_ = RoundUp(spec.head_dim, kPanelColumns);
  key_panels_.resize(depth_ * kTileKeys);
  value_panels_.resize(width_ * kTileKeys);
  scores_.resize(block.num_queries * kTileKeys);
  weights_.resize(block.num_queries * kTileKeys);
  sums_.assign(block.num_queries * width_, 0.0f);
  softmax_.assign(block.num_queries, {-std::numeric_limits<float>::infinity(), 0.0f});
  queries_.assign(block.num_queries * depth_, 0.0f);
  const int64_t group = spec.query_heads / spec.kv_heads;
  for (int64_t i = 0; i < block.num_queries; ++i) {
    const int64_t query = block.query_begin + i;
    const int64_t token = block.segment->first_row + query / group;
    const int64_t head = block.kv_head * group + query % group;
    const float* from = q.As<float>() + (token * spec.query_heads + head) * spec.head_dim;
    const PackedRow to = PackedRowAt(i, block.num_queries, depth_);
    for (int64_t k = 0; k < spec.head_dim; ++k) {
      queries_[to.offset + k * to.depth_stride] = from[k] * spec.scale;
    }
  }
}

void BlockAttention::PackTile(const AttentionSpec& spec, const AttentionBlock& block,
                              const KvLayer& cache, int64_t key_begin, int64_t key_end) {
  std::array<const BFloat16*, kTileKeys> keys;
  std::array<const BFloat16*, kTileKeys> values;
  const int64_t count = key_end - key_begin;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = key_begin + i;
    const int64_t kv_block = block.segment->kv_blocks[position / cache.block_tokens];
    const int64_t row = kv_block * cache.block_tokens + position % cache.block_tokens;
    const int64_t offset = (row * spec.kv_heads + block.kv_head) * spec.head_dim;
    keys[i] = cache.keys.As<BFloat16>() + offset;
    values[i] = cache.values.As<BFloat16>() + offset;
  }
  for (int64_t p = 0; p < kTilePanels; ++p) {
    const int64_t first = std::min(count, p * kPanelColumns);
    const int64_t columns = std::min(count - first, kPanelColumns);
    PackColumns(std::span(keys).subspan(first, columns), spec.head_dim, depth_,
                key_panels_.data() + p * depth_ * kPanelColumns);
  }
  PackRows(std::span(values).first(count), spec.head_dim, kTileKeys, value_panels_.data());
}

void BlockAttention::WeighTile(const AttentionSpec& spec, const AttentionBlock& block,
                               int64_t key_begin) {
  const int64_t group = spec.query_heads / spec.kv_heads;
  for (int64_t i = 0; i < block.num_queries; ++i) {
    const int64_t position = block.segment->context_start + (block.query_begin + i) / group;
    const VisibleKeys visible = VisibleInTile(spec, block, position, key_begin);
    const PackedRow to = PackedRowAt(i, block.num_queries, kTileKeys);
    if (visible.begin >= visible.end) {
      for (int64_t j = 0; j < kTileKeys; ++j) weights_[to.offset + j * to.depth_stride] = 0;
      continue;
    }
    SoftmaxTileRow(scores_.data() + i * kTileKeys, visible, &softmax_[i],
                   weights_.data() + to.offset, to.depth_stride, sums_.data() + i * width_, width_);
  }
}

}  // namespace moed::backend
