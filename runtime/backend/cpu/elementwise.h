// Row moves and sums of the CPU backend: Embed, CombineExperts, AddShared and GatherRows of
// backend.h, where shapes are stated. Each output element has one writer and one order of
// additions. Engine thread.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/backend/cpu/thread_pool.h"
#include "runtime/backend/tensor.h"

namespace moed::backend {

void EmbedRows(ThreadPool& pool, const Tensor& table, std::span<const int32_t> token_ids,
               const Tensor& out);
void CombineExpertRows(ThreadPool& pool, const Tensor& expert_out, const Tensor& weights,
                       const Tensor& residual);
void AddSharedRows(ThreadPool& pool, const Tensor& shared, const Tensor& gate_logits,
                   const Tensor& residual);
void GatherTensorRows(ThreadPool& pool, const Tensor& x, std::span<const int32_t> rows,
                      const Tensor& out);

}  // namespace moed::backend
