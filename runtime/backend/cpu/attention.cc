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

struct KeyRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// Positions that any of the block's queries sees.
KeyRange KeysOf(const AttentionSpec& spec, const AttentionBlock& block) {
  const int64_t group = spec.query_heads / spec.kv_heads;
  const int64_t start = block.segment->context_start;
  const int64_t first_position = start + block.query_begin / group;
  const int64_t last_position = start + (block.query_begin + block.num_queries - 1) / group;
  const int64_t oldest =
      spec.sliding_window > 0 ? std::max<int64_t>(0, first_position + 1 - spec.sliding_window) : 0;
  return {oldest, last_position + 1};
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
  const auto num_blocks = static_cast<int64_t>(blocks_.size());
  auto run_blocks = [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; ++i) {
      // The longest blocks of a prompt are its last: they start first.
      const PlannedBlock& planned = blocks_[num_blocks - 1 - i];
      BlockAttention& result = workers_[worker];
      result.Run(spec, planned.block, q, cache);
      if (planned.first_part < 0) {
        StoreResult(spec, planned.block, result, out);
      } else {
        StorePart(spec, planned, result);
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
  splits_.clear();
  num_parts_ = 0;
  for (const AttentionSegment& segment : segments) {
    for (int kv_head = 0; kv_head < spec.kv_heads; ++kv_head) PlanSegment(spec, segment, kv_head);
  }
  part_sums_.resize(num_parts_ * spec.head_dim);
  part_softmax_.resize(num_parts_);
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
    const KeyRange keys = KeysOf(spec, block);
    // A prompt has blocks enough for all threads; a decode step may have only this one.
    const int64_t span_keys = queries <= kMaxBlockQueries ? kSpanKeys : keys.end - keys.begin;
    const int64_t num_spans = (keys.end - keys.begin + span_keys - 1) / span_keys;
    if (num_spans > 1) splits_.push_back({block, num_parts_, num_spans});
    for (int64_t key = keys.begin; key < keys.end; key += span_keys) {
      block.key_begin = key;
      block.key_end = std::min(keys.end, key + span_keys);
      blocks_.push_back({block, num_spans > 1 ? num_parts_ : -1});
      if (num_spans > 1) num_parts_ += block.num_queries;
    }
  }
}

void PagedAttention::StorePart(const AttentionSpec& spec, const PlannedBlock& planned,
                               const BlockAttention& result) {
  for (int64_t i = 0; i < planned.block.num_queries; ++i) {
    const int64_t part = planned.first_part + i;
    part_softmax_[part] = result.softmax(i);
    std::copy_n(result.sums(i), spec.head_dim, part_sums_.begin() + part * spec.head_dim);
  }
}

void PagedAttention::MergeParts(const AttentionSpec& spec, const Split& split,
                                const Tensor& out) const {
  const int64_t num_queries = split.block.num_queries;
  std::vector<float> merged(spec.head_dim);
  for (int64_t i = 0; i < num_queries; ++i) {
    const int64_t first = split.first_part + i;
    const int64_t end = first + split.num_spans * num_queries;
    float maximum = -std::numeric_limits<float>::infinity();
    for (int64_t part = first; part < end; part += num_queries) {
      maximum = std::max(maximum, part_softmax_[part].maximum);
    }
    float denominator = 0;
    std::fill(merged.begin(), merged.end(), 0.0f);
    for (int64_t part = first; part < end; part += num_queries) {
      const RunningSoftmax& softmax = part_softmax_[part];
      // A span that lies wholly outside a query's window has gathered nothing.
      const float factor = softmax.sum == 0 ? 0.0f : std::exp(softmax.maximum - maximum);
      denominator += softmax.sum * factor;
      const float* sums = part_sums_.data() + part * spec.head_dim;
      for (int64_t j = 0; j < spec.head_dim; ++j) merged[j] += sums[j] * factor;
    }
    BFloat16* to = out.As<BFloat16>() + QueryOffset(spec, split.block, split.block.query_begin + i);
    for (int64_t j = 0; j < spec.head_dim; ++j) to[j] = ToBFloat16(merged[j] / denominator);
  }
}

}  // namespace moed::backend
