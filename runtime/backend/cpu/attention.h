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
  // A block, and where its part of the result begins in parts_ (counted in queries), if others add
  // to the same queries; -1: it is the whole result.
  struct PlannedBlock {
    AttentionBlock block;
    int64_t first_part = -1;
  };
  // Parts of the same queries, span after span.
  struct Split {
    AttentionBlock block;  // of any span
    int64_t first_part = 0;
    int64_t num_spans = 0;
  };

  void PlanBlocks(const AttentionSpec& spec, std::span<const AttentionSegment> segments);
  void PlanSegment(const AttentionSpec& spec, const AttentionSegment& segment, int kv_head);
  void StorePart(const AttentionSpec& spec, const PlannedBlock& planned,
                 const BlockAttention& result);
  void MergeParts(const AttentionSpec& spec, const Split& split, const Tensor& out) const;

  ThreadPool& pool_;
  std::vector<BlockAttention> workers_;
  std::vector<PlannedBlock> blocks_;
  std::vector<Split> splits_;
  int64_t num_parts_ = 0;
  std::vector<float> part_sums_;              // [num_parts_][D]
  std::vector<RunningSoftmax> part_softmax_;  // [num_parts_]
};

}  // namespace moed::backend
