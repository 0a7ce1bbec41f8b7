// Causal grouped-query attention over the paged KV cache on the CPU (Attention of backend.h).
#pragma once

#include <span>

#include "runtime/backend/backend.h"
#include "runtime/backend/cpu/thread_pool.h"

namespace moed::backend {

// q [T, hq * D] f32 -> out [T, hq * D] bf16.
void AttendSegments(ThreadPool& pool, const AttentionSpec& spec,
                    std::span<const AttentionSegment> segments, const Tensor& q,
                    const KvLayer& cache, const Tensor& out);

}  // namespace moed::backend
