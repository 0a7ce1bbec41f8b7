// Attention over a paged cache, and what is written into it before, against the CPU backend's.
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/runtime/backend/cuda/both_backends_test.h"

namespace moed::backend {
namespace {

class CudaAttentionTest : public BothBackendsTest {
 protected:
  // Two chunks of two prompts, one of them long.
  void ExpectSameLongAttention(const AttentionSpec& spec, int block_tokens);
};

// Prompts and single tokens, written to the cache and attended to, in blocks that lie scattered.
TEST_F(CudaAttentionTest, PrepareQkvAndAttentionOverAPagedCache) {
  for (const int head_dim : {32, 64, 96, 128, 256}) {
    for (const int window : {0, 20}) {
      const AttentionSpec spec = {.query_heads = 6,
                                  .kv_heads = 2,
                                  .head_dim = head_dim,
                                  .scale = 0.1f,
                                  .sliding_window = window};
      const std::vector<int32_t> blocks[] = {{4, 0, 9, 7, 1, 12, 13, 14, 15, 16, 17, 18, 19},
                                             {2, 11, 5}};
      const int q_width = spec.query_heads * head_dim;
      const int kv_width = spec.kv_heads * head_dim;
      std::vector<float> frequencies = RandomFloats(head_dim / 2, 9);
      ExpectSame(
          [&](Backend& backend, DeviceTensors& memory) {
            const KvLayer cache = {memory.Make(DType::kBF16, {20, 16, kv_width}),
                                   memory.Make(DType::kBF16, {20, 16, kv_width}), 16};
            QkPrepare prepare;
            prepare.q_norm = memory.Put(RandomFloats(head_dim, 7), DType::kF32, {head_dim});
            prepare.k_norm = memory.Put(RandomFloats(head_dim, 8), DType::kF32, {head_dim});
            prepare.clip_qkv = 2.0f;
            prepare.rope = {
                .rotary_dims = head_dim,
                .inverse_frequencies = Tensor(frequencies.data(), DType::kF32, {head_dim / 2})};
            std::vector<float> all;
            // A prompt of 190 and one of 30, then a token of the first beside five of the second.
            for (int step = 0; step < 2; ++step) {
              const int first = step == 0 ? 190 : 1;
              const int second = step == 0 ? 30 : 5;
              const int rows = first + second;
              const AttentionSegment segments[] = {{0, first, step == 0 ? 0 : 190, blocks[0]},
                                                   {first, second, step == 0 ? 0 : 30, blocks[1]}};
              const std::vector<int32_t> ids(rows);
              backend.BeginStep(ids, segments);
              const uint32_t seed = 10 * step;
              const Tensor q =
                  memory.Put(RandomFloats(rows * q_width, seed + 1), DType::kF32, {rows, q_width});
              const Tensor k = memory.Put(RandomFloats(rows * kv_width, seed + 2), DType::kF32,
                                          {rows, kv_width});
              const Tensor v = memory.Put(RandomFloats(rows * kv_width, seed + 3), DType::kF32,
                                          {rows, kv_width});
              const Tensor out = memory.Make(DType::kBF16, {rows, q_width});
              backend.PrepareQkv(prepare, spec, segments, q, k, v, cache);
              backend.Attention(spec, segments, q, cache, out);
              for (float value : memory.GetBFloat16(out)) all.push_back(value);
            }
            return all;
          },
          1e-2);
    }
  }
}

void CudaAttentionTest::ExpectSameLongAttention(const AttentionSpec& spec, int block_tokens) {
  const int q_width = spec.query_heads * spec.head_dim;
  const int kv_width = spec.kv_heads * spec.head_dim;
  const int num_blocks = 1000 / block_tokens;
  std::vector<int32_t> blocks(num_blocks);
  std::iota(blocks.rbegin(), blocks.rend(), 0);
  std::vector<float> frequencies = RandomFloats(spec.head_dim / 2, 9);
  ExpectSame(
      [&](Backend& backend, DeviceTensors& memory) {
        QkPrepare prepare;
        prepare.q_norm = memory.Put(RandomFloats(spec.head_dim, 7), DType::kF32, {spec.head_dim});
        prepare.k_norm = memory.Put(RandomFloats(spec.head_dim, 8), DType::kF32, {spec.head_dim});
        prepare.clip_qkv = 2.0f;
        prepare.rope = {
            .rotary_dims = spec.head_dim,
            .inverse_frequencies = Tensor(frequencies.data(), DType::kF32, {spec.head_dim / 2})};
        const KvLayer cache = {memory.Make(DType::kBF16, {num_blocks, block_tokens, kv_width}),
                               memory.Make(DType::kBF16, {num_blocks, block_tokens, kv_width}),
                               block_tokens};
        std::vector<float> all;
        const std::pair<int, int> chunks[] = {{7, 301}, {3, 570}};
        std::pair<int, int> context;
        for (const auto& [first, second] : chunks) {
          const int rows = first + second;
          const AttentionSegment segments[] = {
              {0, first, context.first, std::span(blocks).first(1)},
              {first, second, context.second, std::span(blocks).subspan(1)}};
          const std::vector<int32_t> ids(rows);
          backend.BeginStep(ids, segments);
          const auto random = [&](int width, uint32_t seed) {
            return memory.Put(RandomFloats(rows * width, seed), DType::kF32, {rows, width});
          };
          const Tensor q = random(q_width, first);
          const Tensor out = memory.Make(DType::kBF16, {rows, q_width});
          backend.PrepareQkv(prepare, spec, segments, q, random(kv_width, first + 1),
                             random(kv_width, first + 2), cache);
          backend.Attention(spec, segments, q, cache, out);
          for (float value : memory.GetBFloat16(out)) all.push_back(value);
          context = {context.first + first, context.second + second};
        }
        return all;
      },
      1e-2);
}

// Prompts of many tiles of keys, in chunks that begin within a tile of tokens, one behind another.
// Blocks of a size that is no power of two take the kernel for devices before Hopper.
TEST_F(CudaAttentionTest, AttentionOfLongPrompts) {
  for (const int head_dim : {64, 128}) {
    for (const int window : {0, 300}) {
      for (const int block_tokens : {16, 12}) {
        for (const int query_heads : {22, 16}) {
          ExpectSameLongAttention({.query_heads = query_heads,
                                   .kv_heads = 2,
                                   .head_dim = head_dim,
                                   .scale = 0.2f,
                                   .sliding_window = window},
                                  block_tokens);
        }
      }
    }
  }
}

}  // namespace
}  // namespace moed::backend
