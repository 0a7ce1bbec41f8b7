#include "runtime/backend/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "runtime/backend/dtype.h"

namespace moed::backend {
namespace {

void AttendQuery(const AttentionSpec& spec, const AttentionSegment& segment, const KvLayer& cache,
                 int token, int head, const float* q, BFloat16* out) {
  const int position = segment.context_start + token;
  const int first = spec.sliding_window > 0 ? std::max(0, position + 1 - spec.sliding_window) : 0;
  const int64_t kv_width = int64_t{spec.kv_heads} * spec.head_dim;
  const int64_t kv_offset = int64_t{head / (spec.query_heads / spec.kv_heads)} * spec.head_dim;
  auto row = [&](const Tensor& tensor, int key) {
    const int64_t block = segment.kv_blocks[key / cache.block_tokens];
    return tensor.As<const BFloat16>() +
           (block * cache.block_tokens + key % cache.block_tokens) * kv_width + kv_offset;
  };
  std::vector<float> scores(position + 1 - first);
  float maximum = -std::numeric_limits<float>::infinity();
  for (int key = first; key <= position; ++key) {
    const BFloat16* keys = row(cache.keys, key);
    float dot = 0;
    for (int i = 0; i < spec.head_dim; ++i) dot += q[i] * ToFloat(keys[i]);
    scores[key - first] = dot * spec.scale;
    maximum = std::max(maximum, scores[key - first]);
  }
  std::vector<float> sum(spec.head_dim, 0.0f);
  float denominator = 0;
  for (int key = first; key <= position; ++key) {
    const float weight = std::exp(scores[key - first] - maximum);
    denominator += weight;
    const BFloat16* values = row(cache.values, key);
    for (int i = 0; i < spec.head_dim; ++i) sum[i] += weight * ToFloat(values[i]);
  }
  for (int i = 0; i < spec.head_dim; ++i) out[i] = ToBFloat16(sum[i] / denominator);
}

}  // namespace

void AttendSegments(ThreadPool& pool, const AttentionSpec& spec,
                    std::span<const AttentionSegment> segments, const Tensor& q,
                    const KvLayer& cache, const Tensor& out) {
  const int64_t heads = spec.query_heads;
  for (const AttentionSegment& segment : segments) {
    auto body = [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t offset = (segment.first_row * heads + i) * spec.head_dim;
        AttendQuery(spec, segment, cache, static_cast<int>(i / heads), static_cast<int>(i % heads),
                    q.As<float>() + offset, out.As<BFloat16>() + offset);
      }
    };
    pool.ParallelFor(segment.num_tokens * heads, 1, body);
  }
}

}  // namespace moed::backend
