// The router's choice on the CPU: logits to top-k experts and their weights (Route of backend.h).
#pragma once

#include <span>

#include "runtime/backend/backend.h"
#include "runtime/backend/cpu/thread_pool.h"

namespace moed::backend {

// One token: `logits` [E] -> `ids` and `weights` [k], k <= E. Logits that are NaN rank below all
// others; ids are distinct and in [0, E) whatever the logits, while the weights of such a row are
// NaN, which the sampler reports.
void RouteToken(const RouterSpec& spec, std::span<const float> logits, std::span<int32_t> ids,
                std::span<float> weights);

// All tokens: logits [T, E] -> ids [T, k] i32, weights [T, k] f32.
void RouteTokens(ThreadPool& pool, const RouterSpec& spec, const Tensor& logits, const Tensor& ids,
                 const Tensor& weights);

}  // namespace moed::backend
