// The two products of attention where queries are few, as in a decode step: keys and values are
// read once, as they lie in the cache, and nothing is packed. A bf16 row is taken as 32-bit words
// of two neighbours, so float32 rows here are split: the values at even positions, then those at
// odd ones. Any thread.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/backend/dtype.h"

namespace moed::backend {

// Queries that these kernels are for; more are faster on panels (attention_block.h).
constexpr int64_t kFewQueries = 4;

// True if rows of `head_dim` values are whole vectors of words on this CPU.
bool FewQueriesFit(int64_t head_dim);

// scores[i * scores_stride + j] = queries row i . keys[j]. queries: [num_queries][head_dim] f32,
// each row split, 1 <= num_queries <= kFewQueries.
void ScoreFewQueries(const float* queries, int64_t num_queries,
                     std::span<const BFloat16* const> keys, int64_t head_dim, float* scores,
                     int64_t scores_stride);

// sums row i += sum over j of weights[i * weights_stride + j] * values[j], j in rising order.
// sums: [num_queries] rows of head_dim f32, each split, sums_stride floats apart.
void AddWeightedFewQueries(const float* weights, int64_t weights_stride, int64_t num_queries,
                           std::span<const BFloat16* const> values, int64_t head_dim, float* sums,
                           int64_t sums_stride);

}  // namespace moed::backend
