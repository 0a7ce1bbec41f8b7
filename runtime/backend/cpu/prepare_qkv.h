// Between the q, k, v projections and attention on the CPU: norms, clipping, rotary embedding, and
// the write of keys and values into the paged cache.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/backend/backend.h"
#include "runtime/backend/cpu/thread_pool.h"

namespace moed::backend {

// Cosines and sines of one step's positions, kept from layer to layer: all layers of a step rotate
// by the same angles. Engine thread.
class RopeTable {
 public:
  // Makes cosine() and sine() hold the rows of `segments` (recomputed only if they differ from the
  // last call's): row t is token t of the batch.
  void Update(ThreadPool& pool, const RopeSpec& spec, std::span<const AttentionSegment> segments,
              int64_t num_tokens);

  // [R/2] f32, times the attention factor.
  const float* cosine(int64_t token) const { return cosine_.data() + token * pairs_; }
  const float* sine(int64_t token) const { return sine_.data() + token * pairs_; }
  int64_t pairs() const { return pairs_; }

 private:
  int64_t pairs_ = 0;  // R/2
  float attention_factor_ = 0;
  std::vector<float> inverse_frequencies_;
  std::vector<int32_t> positions_;
  std::vector<float> cosine_;
  std::vector<float> sine_;
};

// PrepareQkv of backend.h, where shapes are stated.
void PrepareQkvRows(ThreadPool& pool, RopeTable& rope_table, const QkPrepare& prepare,
                    const AttentionSpec& spec, std::span<const AttentionSegment> segments,
                    const Tensor& q, const Tensor& k, const Tensor& v, const KvLayer& cache);

}  // namespace moed::backend
