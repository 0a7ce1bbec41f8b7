// Expert FFNs on the CPU (Experts of backend.h, where shapes are stated).
#pragma once

#include <span>

#include "runtime/backend/backend.h"
#include "runtime/backend/cpu/thread_pool.h"

namespace moed::backend {

// For each work item, out[row] = expert(x[row / top_k]) for its rows. x [T, H] bf16, out
// [T * top_k, H] f32.
void ComputeExperts(ThreadPool& pool, const ExpertFormat& format, std::span<const ExpertWork> work,
                    int top_k, const Tensor& x, const Tensor& out);

}  // namespace moed::backend
