#include "runtime/backend/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/backend/dtype.h"

namespace moed::backend {
namespace {

// Keys of one span of a split context: long enough that merging parts costs little.
constexpr int64_t kSpanKeys = 1024;

// Where query `query` of the block's KV head lies in q and out.
int64_t QueryOffset(const AttentionSpec& spec, const AttentionBlock& block, int64_t query) {
  const int64_t group = spec.query_heads / spec.kv_heads;
  const int64_t token = block.segment->first_row + query / group;
  return (token * spec.query_heads + block.kv_head * group + query % group) * spec.head_dim;
}

void StoreResult(const AttentionSpec& spec, const AttentionBlock& block,
                 const BlockAttention& result, const Tensor& out) {
  for (int64_t i = 0; i < block.num_queries; ++i) {
    const float scale = 1.0f / result.softmax(i).sum;
    const float* sums = result.sums(i);
    BFloat16* to = out.As<BFloat16>() + QueryOffset(spec, block, block.query_begin + i);
    for (int64_t j = 0; j < spec.head_dim; ++j) to[j] = ToBFloat16(sums[j] * scale);
  }
}

}  // namespace

void PagedAttention::Run(const AttentionSpec& spec, std::span<const AttentionSegment> segments,
                         const Tensor& q, const KvLayer& cache, const Tensor& out) {
  PlanBlocks(spec, segments);
  // The longest blocks are last in the plan of a prompt: they start first.
  const auto num_blocks = static_cast<int64_t>(blocks_.size());
  auto run_blocks = [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t index = num_blocks - 1 - i;
      const AttentionBlock& block = blocks_[index];
      workers_[worker].Run(spec, block, q, cache);
      if (part_of_block_[index] < 0) {
        StoreResult(spec, block, workers_[worker], out);
      } else {
        StorePart(spec, workers_[worker], index);
      }
    }
  };
  pool_.ParallelFor(num_blocks, 1, run_blocks);
  auto merge_splits = [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) MergeParts(spec, splits_[i], out);
  };
  pool_.ParallelFor(static_cast<int64_t>(splits_.size()), 1, merge_splits);
}

void PagedAttention::PlanBlocks(const AttentionSpec& spec,
                                std::span<const AttentionSegment> segments) {
  blocks_.clear();
  part_of_block_.clear();
  splits_.clear();
  for (const AttentionSegment& segment : segments) {
    for (int kv_head = 0; kv_head < spec.kv_heads; ++kv_head) PlanSegment(spec, segment, kv_head);
  }
  int64_t part_queries = 0;
  for (const SplitBlock& split : splits_) {
    for (int64_t i = 0; i < split.num_spans; ++i) {
      part_of_block_[split.first_span + i] = part_queries;
      part_queries += split.block.num_queries;
    }
  }
  part_sums_.resize(part_queries * spec.head_dim);
  part_softmax_.resize(part_queries);
}

void PagedAttention::PlanSegment(const AttentionSpec& spec, const AttentionSegment& segment,
                                 int kv_head) {
  const int64_t group = spec.query_heads / spec.kv_heads;
  const int64_t queries = segment.num_tokens * group;
  for (int64_t begin = 0; begin < queries; begin += kMaxBlockQueries) {
    AttentionBlock block = {.segment = &segment,
                            .kv_head = kv_head,
                            .query_begin = begin,
                            .num_queries = std::min(kMaxBlockQueries, queries - begin)};
    const int64_t first_position = segment.context_start + begin / group;
    const int64_t last_position = segment.context_start + (begin + block.num_queries - 1) / group;
    const int64_t key_begin = spec.sliding_window > 0
                                  ? std::max<int64_t>(0, first_position + 1 - spec.sliding_window)
                                  : 0;
    const int64_t key_end = last_position + 1;
    // A prompt has blocks enough for all threads; a decode step may have only this one.
    const int64_t span = queries <= kMaxBlockQueries ? kSpanKeys : key_end - key_begin;
    const auto first_span = static_cast<int64_t>(blocks_.size());
    for (int64_t key = key_begin; key < key_end; key += span) {
      block.key_begin = key;
      block.key_end = std::min(key_end, key + span);
      blocks_.push_back(block);
      part_of_block_.push_back(-1);
    }
    const int64_t num_spans = static_cast<int64_t>(blocks_.size()) - first_span;
    if (num_spans > 1) splits_.push_back({block, first_span, num_spans});
  }
}

void PagedAttention::StorePart(const AttentionSpec& spec, const BlockAttention& result,
                               int64_t block) {
  const int64_t part = part_of_block_[block];
  for (int64_t i = 0; i < blocks_[block].num_queries; ++i) {
    part_softmax_[part + i] = result.softmax(i);
    std::copy_n(result.sums(i), spec.head_dim, part_sums_.begin() + (part + i) * spec.head_dim);
  }
}

void PagedAttention::MergeParts(const AttentionSpec& spec, const SplitBlock& split,
                                const Tensor& out) const {
  const int64_t num_queries = split.block.num_queries;
  const int64_t first_part = part_of_block_[split.first_span];
  std::vector<float> merged(spec.head_dim);
  for (int64_t i = 0; i < num_queries; ++i) {
    const RunningSoftmax* parts = part_softmax_.data() + first_part + i;
    float maximum = -std::numeric_limits<float>::infinity();
    for (int64_t s = 0; s < split.num_spans; ++s) {
      maximum = std::max(maximum, parts[s * num_queries].maximum);
    }
    float denominator = 0;
    std::fill(merged.begin(), merged.end(), 0.0f);
    for (int64_t s = 0; s < split.num_spans; ++s) {
      const RunningSoftmax& part = parts[s * num_queries];
      // A span that lies wholly outside a query's window has gathered nothing.
      const float factor = part.sum == 0 ? 0.0f : std::exp(part.maximum - maximum);
      denominator += part.sum * factor;
      const float* sums = part_sums_.data() + (first_part + s * num_queries + i) * spec.head_dim;
      for (int64_t j = 0; j < spec.head_dim; ++j) merged[j] += sums[j] * factor;
    }
    BFloat16* to = out.As<BFloat16>() + QueryOffset(spec, split.block, split.block.query_begin + i);
    for (int64_t j = 0; j < spec.head_dim; ++j) to[j] = ToBFloat16(merged[j] / denominator);
  }
}

}  // namespace moed::backend
