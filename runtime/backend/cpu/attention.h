// Causal grouped-query attention over the paged KV cache on the CPU (Attention of backend.h). Work
// is cut by sequence, KV head and query rows, and, where queries are few, along the context in
// spans of a fixed length, so that the result does not depend on the number of threads.
#pragma once

#include <span>
#include <vector>

#include "runtime/backend/backend.h"
#include "runtime/backend/cpu/attention_block.h"
#include "runtime/backend/cpu/thread_pool.h"

namespace moed::backend {

// Owned by CpuBackend; engine thread.
class PagedAttention {
 public:
  explicit PagedAttention(ThreadPool& pool) : pool_(pool), workers_(pool.num_threads()) {}

  // q [T, hq * D] f32 -> out [T, hq * D] bf16, for the tokens of the segments.
  void Run(const AttentionSpec& spec, std::span<const AttentionSegment> segments, const Tensor& q,
           const KvLayer& cache, const Tensor& out);

 private:
  // Blocks with the same queries and following key ranges; each has a part of the result if there
  // are several.
  struct SplitBlock {
    AttentionBlock block;
    int64_t first_span = 0;  // index of the first span's block in blocks_
    int64_t num_spans = 1;
  };

  void PlanBlocks(const AttentionSpec& spec, std::span<const AttentionSegment> segments);
  void PlanSegment(const AttentionSpec& spec, const AttentionSegment& segment, int kv_head);
  void StorePart(const AttentionSpec& spec, const BlockAttention& result, int64_t block);
  void MergeParts(const AttentionSpec& spec, const SplitBlock& split, const Tensor& out) const;

  ThreadPool& pool_;
  std::vector<BlockAttention> workers_;
  std::vector<AttentionBlock> blocks_;
  // Where the block's part begins in part_sums_ / D and part_softmax_; -1: it is a whole result.
  std::vector<int64_t> part_of_block_;
  std::vector<SplitBlock> splits_;
  std::vector<float> part_sums_;              // [queries of split blocks][D]
  std::vector<RunningSoftmax> part_softmax_;  // [queries of split blocks]
};

}  // namespace moed::backend
