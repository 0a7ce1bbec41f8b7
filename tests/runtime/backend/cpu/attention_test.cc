#include "runtime/backend/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/backend/cpu/kv_layout.h"
#include "tests/runtime/backend/cpu/cpu_target_test.h"
#include "tests/runtime/backend/cpu/random_tensor.h"

namespace moed::backend {
namespace {

struct SequencePart {
  int num_tokens;
  int context_start;
};

// A cache with random contents and sequences whose blocks are scattered over it.
class PagedBatch {
 public:
  PagedBatch(const AttentionSpec& spec, int block_tokens, const std::vector<SequencePart>& parts)
      : spec_(spec), block_tokens_(block_tokens) {
    int num_blocks = 0;
    for (const SequencePart& part : parts) num_blocks += BlocksOf(part);
    std::vector<int32_t> shuffled(num_blocks + 3);
    std::iota(shuffled.begin(), shuffled.end(), 0);
    std::shuffle(shuffled.begin(), shuffled.end(), std::mt19937(5));
    tables_.reserve(parts.size());
    auto next = shuffled.begin();
    for (const SequencePart& part : parts) {
      tables_.emplace_back(next, next + BlocksOf(part));
      next += BlocksOf(part);
      segments_.push_back({.first_row = num_tokens_,
                           .num_tokens = part.num_tokens,
                           .context_start = part.context_start,
                           .kv_blocks = tables_.back()});
      num_tokens_ += part.num_tokens;
    }
    const int64_t cache_tokens = static_cast<int64_t>(shuffled.size()) * block_tokens;
    const int64_t width = int64_t{spec.kv_heads} * spec.head_dim;
    keys_ = BFloat16Matrix::Random(1, cache_tokens * width, 1);
    values_ = BFloat16Matrix::Random(1, cache_tokens * width, 2);
    q_ = FloatMatrix::Random(num_tokens_, int64_t{spec.query_heads} * spec.head_dim, 3);
  }

  BFloat16Matrix Run(int threads) {
    ThreadPool pool(threads);
    PagedAttention attention(pool);
    BFloat16Matrix out(num_tokens_, int64_t{spec_.query_heads} * spec_.head_dim);
    attention.Run(spec_, segments_, q_.tensor(), Cache(), out.tensor());
    return out;
  }

  // Softmax over all visible keys at once, in double precision.
  std::vector<double> Reference(const AttentionSegment& segment, int token, int head) const {
    const int position = segment.context_start + token;
    const int first =
        spec_.sliding_window > 0 ? std::max(0, position + 1 - spec_.sliding_window) : 0;
    const int64_t kv_head = int64_t{head} * spec_.kv_heads / spec_.query_heads;
    const int64_t q_column = int64_t{head} * spec_.head_dim;
    std::vector<double> sums(spec_.head_dim, 0.0);
    double denominator = 0;
    for (int key = first; key <= position; ++key) {
      const int64_t at = KvOffset(spec_, Cache(), segment.kv_blocks[key / block_tokens_],
                                  key % block_tokens_, kv_head);
      double score = 0;
      for (int i = 0; i < spec_.head_dim; ++i) {
        score += double{q_.at(segment.first_row + token, q_column + i)} * keys_.at(0, at + i);
      }
      const double weight = std::exp(score * spec_.scale);
      denominator += weight;
      for (int i = 0; i < spec_.head_dim; ++i) {
        sums[i] += weight * values_.at(0, at + i);
      }
    }
    for (double& sum : sums) sum /= denominator;
    return sums;
  }

  void ExpectMatchesReference(const BFloat16Matrix& out) const {
    for (const AttentionSegment& segment : segments_) {
      for (int token = 0; token < segment.num_tokens; ++token) {
        for (int head = 0; head < spec_.query_heads; ++head) {
          const std::vector<double> expected = Reference(segment, token, head);
          for (int i = 0; i < spec_.head_dim; ++i) {
            // Rounding to bf16 moves a value by 2^-8 of itself at most.
            ASSERT_NEAR(out.at(segment.first_row + token, int64_t{head} * spec_.head_dim + i),
                        expected[i], 1e-5 + std::abs(expected[i]) / 256)
                << "token " << token << " at " << segment.context_start << ", head " << head;
          }
        }
      }
    }
  }

 private:
  int BlocksOf(const SequencePart& part) const {
    return (part.context_start + part.num_tokens + block_tokens_ - 1) / block_tokens_;
  }

  KvLayer Cache() const { return {keys_.tensor(), values_.tensor(), block_tokens_}; }

  AttentionSpec spec_;
  int block_tokens_;
  int num_tokens_ = 0;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<AttentionSegment> segments_;
  mutable BFloat16Matrix keys_{0, 0};
  mutable BFloat16Matrix values_{0, 0};
  FloatMatrix q_{0, 0};
};

AttentionSpec SpecOf(int query_heads, int kv_heads, int head_dim, int sliding_window = 0) {
  return {.query_heads = query_heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
          .sliding_window = sliding_window};
}

class AttentionTest : public CpuTargetTest {};
MOED_INSTANTIATE_CPU_TARGETS(AttentionTest);

TEST_P(AttentionTest, MatchesDoublePrecisionOverHeadShapes) {
  const std::vector<SequencePart> parts = {{1, 0}, {2, 5}, {7, 0}, {1, 63}, {1, 64}, {64, 3}};
  for (const AttentionSpec& spec : {SpecOf(4, 4, 32), SpecOf(8, 2, 64), SpecOf(3, 1, 96),
                                    SpecOf(16, 2, 128), SpecOf(2, 1, 20)}) {
    PagedBatch batch(spec, 16, parts);
    batch.ExpectMatchesReference(batch.Run(2));
  }
}

TEST_P(AttentionTest, MatchesDoublePrecisionOnPromptsOfManyBlocks) {
  PagedBatch batch(SpecOf(4, 2, 32), 5, {{513, 0}, {130, 77}});
  batch.ExpectMatchesReference(batch.Run(3));
}

TEST_P(AttentionTest, MergesSpansOfLongContexts) {
  PagedBatch batch(SpecOf(4, 2, 32), 16, {{1, 1023}, {1, 1024}, {3, 3000}});
  batch.ExpectMatchesReference(batch.Run(2));
}

TEST_P(AttentionTest, SeesOnlyTheSlidingWindow) {
  for (int window : {1, 3, 64, 100}) {
    PagedBatch batch(SpecOf(4, 2, 32, window), 16, {{1, 200}, {150, 0}, {1, 0}, {30, 1500}});
    batch.ExpectMatchesReference(batch.Run(2));
  }
}

TEST_P(AttentionTest, BitsDependNeitherOnThreadsNorOnOtherSequences) {
  const AttentionSpec spec = SpecOf(8, 2, 64);
  PagedBatch batch(spec, 16, {{1, 2100}, {120, 40}});
  const BFloat16Matrix out = batch.Run(1);
  for (int threads : {2, 4}) EXPECT_EQ(batch.Run(threads).values(), out.values()) << threads;
}

TEST_P(AttentionTest, BlockSizeDoesNotMatter) {
  // One sequence in blocks that lie in order: the same cache contents whatever the block size.
  const AttentionSpec spec = SpecOf(2, 1, 32);
  BFloat16Matrix keys = BFloat16Matrix::Random(96, 32, 1);
  BFloat16Matrix values = BFloat16Matrix::Random(96, 32, 2);
  FloatMatrix q = FloatMatrix::Random(90, 64, 3);
  std::vector<BFloat16> bits;
  for (int block_tokens : {1, 3, 16, 96}) {
    std::vector<int32_t> table(96 / block_tokens);
    std::iota(table.begin(), table.end(), 0);
    const AttentionSegment segment = {.num_tokens = 90, .kv_blocks = table};
    ThreadPool pool(2);
    BFloat16Matrix out(90, 64);
    PagedAttention(pool).Run(spec, {&segment, 1}, q.tensor(),
                             {keys.tensor(), values.tensor(), block_tokens}, out.tensor());
    if (bits.empty()) bits = out.values();
    EXPECT_EQ(out.values(), bits) << block_tokens;
  }
}

TEST_P(AttentionTest, SurvivesHugeScores) {
  const AttentionSpec spec = SpecOf(1, 1, 32);
  BFloat16Matrix keys = BFloat16Matrix::Random(70, 32, 1);
  BFloat16Matrix values = BFloat16Matrix::Random(70, 32, 2);
  FloatMatrix q = FloatMatrix::Random(1, 32, 3);
  for (float& value : q.values()) value *= 1e4f;
  const int32_t block = 0;
  const AttentionSegment segment = {.num_tokens = 1, .context_start = 69, .kv_blocks = {&block, 1}};
  ThreadPool pool(1);
  BFloat16Matrix out(1, 32);
  PagedAttention(pool).Run(spec, {&segment, 1}, q.tensor(), {keys.tensor(), values.tensor(), 70},
                           out.tensor());
  for (int i = 0; i < 32; ++i) EXPECT_TRUE(std::isfinite(out.at(0, i)));
}

}  // namespace
}  // namespace moed::backend
