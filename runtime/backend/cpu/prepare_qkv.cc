#include "runtime/backend/cpu/prepare_qkv.h"

#include <algorithm>
#include <cmath>

#include "runtime/backend/cpu/experts_layout.h"
#include "runtime/backend/cpu/kv_layout.h"
#include "runtime/backend/cpu/rms_norm.h"
#include "runtime/backend/dtype.h"

namespace moed::backend {
namespace {

constexpr int64_t kTokensPerChunk = 4;

// Position of every token of the batch.
std::vector<int32_t> PositionsOf(std::span<const AttentionSegment> segments, int64_t num_tokens) {
  std::vector<int32_t> positions(num_tokens, 0);
  for (const AttentionSegment& segment : segments) {
    for (int i = 0; i < segment.num_tokens; ++i) {
      positions[segment.first_row + i] = segment.context_start + i;
    }
  }
  return positions;
}

// x [heads * D]: RMSNorm by head or over the whole projection.
void NormalizeProjection(const Tensor& weight, bool per_head, float epsilon, int heads,
                         int head_dim, float* x) {
  if (weight.empty()) return;
  if (!per_head) {
    RmsNormRow(x, weight.As<float>(), int64_t{heads} * head_dim, epsilon, x);
    return;
  }
  for (int head = 0; head < heads; ++head, x += head_dim) {
    RmsNormRow(x, weight.As<float>(), head_dim, epsilon, x);
  }
}

void Clip(float limit, int64_t width, float* x) {
  if (!(limit > 0)) return;
  for (int64_t i = 0; i < width; ++i) x[i] = std::clamp(x[i], -limit, limit);
}

// Pair (a, b) becomes (a cos - b sin, b cos + a sin).
void RotateHeads(const RopeTable& table, int64_t token, bool interleaved, int heads, int head_dim,
                 float* x) {
  const float* cosine = table.cosine(token);
  const float* sine = table.sine(token);
  const int64_t pairs = table.pairs();
  const int64_t step = interleaved ? 2 : 1;
  const int64_t partner = interleaved ? 1 : pairs;
  for (int head = 0; head < heads; ++head, x += head_dim) {
    for (int64_t j = 0; j < pairs; ++j) {
      float& a = x[j * step];
      float& b = x[j * step + partner];
      const float rotated_a = a * cosine[j] - b * sine[j];
      b = b * cosine[j] + a * sine[j];
      a = rotated_a;
    }
  }
}

// A place in the cache.
struct CacheSlot {
  int64_t block = -1;  // -1: the token is in no segment
  int64_t slot = 0;
};

// Where each token of the batch goes.
std::vector<CacheSlot> CacheSlots(std::span<const AttentionSegment> segments, int block_tokens,
                                  int64_t num_tokens) {
  std::vector<CacheSlot> slots(num_tokens);
  for (const AttentionSegment& segment : segments) {
    for (int i = 0; i < segment.num_tokens; ++i) {
      const int position = segment.context_start + i;
      slots[segment.first_row + i] = {segment.kv_blocks[position / block_tokens],
                                      position % block_tokens};
    }
  }
  return slots;
}

// row [kv_heads * D] f32, rounded into its place in `cached`.
void StoreInCache(const AttentionSpec& spec, const KvLayer& cache, CacheSlot place,
                  const float* row, const Tensor& cached) {
  for (int head = 0; head < spec.kv_heads; ++head, row += spec.head_dim) {
    BFloat16* to = cached.As<BFloat16>() + KvOffset(spec, cache, place.block, place.slot, head);
    FloatsToBFloat16(row, spec.head_dim, to);
  }
}

}  // namespace

void RopeTable::Update(ThreadPool& pool, const RopeSpec& spec,
                       std::span<const AttentionSegment> segments, int64_t num_tokens) {
  const int64_t pairs = spec.rotary_dims / 2;
  const std::span<const float> frequencies(spec.inverse_frequencies.As<float>(), pairs);
  std::vector<int32_t> positions = PositionsOf(segments, num_tokens);
  if (pairs == pairs_ && attention_factor_ == spec.attention_factor && positions == positions_ &&
      std::equal(frequencies.begin(), frequencies.end(), inverse_frequencies_.begin(),
                 inverse_frequencies_.end())) {
    return;
  }
  pairs_ = pairs;
  attention_factor_ = spec.attention_factor;
  positions_ = std::move(positions);
  inverse_frequencies_.assign(frequencies.begin(), frequencies.end());
  cosine_.resize(num_tokens * pairs);
  sine_.resize(num_tokens * pairs);
  auto body = [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t j = 0; j < pairs; ++j) {
        // The reference forms the angle in float32.
        const float angle = static_cast<float>(positions_[t]) * frequencies[j];
        cosine_[t * pairs + j] = std::cos(angle) * attention_factor_;
        sine_[t * pairs + j] = std::sin(angle) * attention_factor_;
      }
    }
  };
  pool.ParallelFor(num_tokens, kTokensPerChunk, body);
}

void PrepareQkvRows(ThreadPool& pool, RopeTable& rope_table, const QkPrepare& prepare,
                    const AttentionSpec& spec, std::span<const AttentionSegment> segments,
                    const Tensor& q, const Tensor& k, const Tensor& v, const KvLayer& cache) {
  const int64_t num_tokens = q.dim(0);
  const int64_t q_width = int64_t{spec.query_heads} * spec.head_dim;
  const int64_t kv_width = int64_t{spec.kv_heads} * spec.head_dim;
  rope_table.Update(pool, prepare.rope, segments, num_tokens);
  const std::vector<CacheSlot> slots = CacheSlots(segments, cache.block_tokens, num_tokens);
  auto prepare_row = [&](const Tensor& norm, int heads, int64_t token, float* row) {
    NormalizeProjection(norm, prepare.norm_per_head, prepare.norm_epsilon, heads, spec.head_dim,
                        row);
    Clip(prepare.clip_qkv, int64_t{heads} * spec.head_dim, row);
    RotateHeads(rope_table, token, prepare.rope.interleaved, heads, spec.head_dim, row);
  };
  auto body = [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* k_row = k.As<float>() + t * kv_width;
      float* v_row = v.As<float>() + t * kv_width;
      prepare_row(prepare.q_norm, spec.query_heads, t, q.As<float>() + t * q_width);
      prepare_row(prepare.k_norm, spec.kv_heads, t, k_row);
      Clip(prepare.clip_qkv, kv_width, v_row);
      if (slots[t].block < 0) continue;
      StoreInCache(spec, cache, slots[t], k_row, cache.keys);
      StoreInCache(spec, cache, slots[t], v_row, cache.values);
    }
  };
  pool.ParallelFor(num_tokens, kTokensPerChunk, body);
}

}  // namespace moed::backend
