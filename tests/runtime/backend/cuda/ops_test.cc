// Every op of the CUDA backend against the CPU backend's, on the same values.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/bf12.h"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "tests/runtime/backend/cuda/device_tensors.h"

namespace moed::backend {
namespace {

using Shapes = std::vector<std::pair<int, int>>;

// Of rows that are normed, with `outs` weights.
std::vector<float> NormedProducts(int rows, int in, const std::vector<int>& outs, Backend& backend,
                                  DeviceTensors& memory) {
  std::vector<std::unique_ptr<LinearWeight>> weights;
  std::vector<LinearProduct> products;
  for (const int out : outs) {
    std::vector<BFloat16> weight = RandomBFloat16s(size_t(in) * out, out);
    std::vector<float> bias = RandomFloats(out, out);
    weights.push_back(backend
                          .PrepareLinear(Tensor(weight.data(), DType::kBF16, {out, in}),
                                         Tensor(bias.data(), DType::kF32, {out}))
                          .value());
    products.push_back({weights.back().get(), memory.Make(DType::kF32, {rows, out})});
  }
  const Tensor x = memory.Put(RandomFloats(size_t(rows) * in, 3, 5.0f), DType::kF32, {rows, in});
  const Tensor norm = memory.Put(RandomFloats(in, 4), DType::kF32, {in});
  backend.NormLinearGroup(x, norm, 1e-5f, memory.Make(DType::kBF16, {rows, in}), products);
  std::vector<float> all;
  for (const LinearProduct& product : products) {
    for (float value : memory.Get<float>(product.out)) all.push_back(value);
  }
  return all;
}

class CudaOpsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!CudaAvailable()) GTEST_SKIP() << "no GPU on this machine, or no CUDA in this build";
    cpu_ = CreateCpuBackend({.num_threads = 2}).value();
    cuda_ = CreateCudaBackend({}).value();
  }

  // The results of `run(backend, memory)` on both backends may differ by `bound`.
  template <typename Run>
  void ExpectSame(Run run, double bound) {
    DeviceTensors on_cpu(*cpu_), on_cuda(*cuda_);
    const std::vector<float> want = run(*cpu_, on_cpu);
    const std::vector<float> got = run(*cuda_, on_cuda);
    ASSERT_EQ(got.size(), want.size());
    EXPECT_LE(RelativeRms(got, want), bound);
  }

  // Two chunks of two prompts, one of them long.
  void ExpectSameLongAttention(const AttentionSpec& spec, int block_tokens);

  // Two experts or more of every shape, with as many rows as each of `rows_of` says.
  void ExpectSameExperts(ExpertFormatKind kind, const Shapes& shapes,
                         const std::vector<std::vector<int>>& rows_of);

  std::unique_ptr<Backend> cpu_;
  std::unique_ptr<Backend> cuda_;
};

TEST_F(CudaOpsTest, LinearAtEveryRowCountWithBiasAndAccumulation) {
  // The latter two of as many outputs as keep a large device's multiprocessors busy at once.
  for (const int rows : {1, 2, 3, 7, 8, 9, 16, 17, 32, 33}) {
    for (const auto& [in, out] :
         Shapes{{64, 96}, {520, 40}, {100, 24}, {1032, 2048}, {520, 5080}}) {
      for (const bool accumulate : {false, true}) {
        ExpectSame(
            [&, in = in, out = out](Backend& backend, DeviceTensors& memory) {
              std::vector<BFloat16> weight = RandomBFloat16s(size_t(in) * out, 1);
              std::vector<float> bias = RandomFloats(out, 2);
              const auto linear =
                  backend.PrepareLinear(Tensor(weight.data(), DType::kBF16, {out, in}),
                                        Tensor(bias.data(), DType::kF32, {out}));
              EXPECT_TRUE(linear.ok()) << linear.status();
              const Tensor x =
                  memory.Put(RandomBFloat16s(size_t(rows) * in, 3), DType::kBF16, {rows, in});
              const Tensor y =
                  memory.Put(RandomFloats(size_t(rows) * out, 4), DType::kF32, {rows, out});
              backend.Linear(**linear, x, y, accumulate);
              return memory.Get<float>(y);
            },
            1e-5);
      }
    }
  }
}

TEST_F(CudaOpsTest, NormsTheRowsOfAGroupOfProducts) {
  const std::vector<std::vector<int>> groups = {{96, 40, 40}, {4096, 512, 512}, {3000, 24}};
  for (const int rows : {1, 7, 8, 9, 16, 17}) {
    for (const int in : {520, 2880}) {
      for (const std::vector<int>& outs : groups) {
        ExpectSame(
            [&](Backend& backend, DeviceTensors& memory) {
              return NormedProducts(rows, in, outs, backend, memory);
            },
            3e-3);
      }
    }
  }
}

TEST_F(CudaOpsTest, RmsNormInBothPrecisions) {
  ExpectSame(
      [](Backend& backend, DeviceTensors& memory) {
        const Tensor x = memory.Put(RandomFloats(5 * 300, 1), DType::kF32, {5, 300});
        const Tensor weight = memory.Put(RandomFloats(300, 2), DType::kF32, {300});
        const Tensor out = memory.Make(DType::kBF16, {5, 300});
        const Tensor out_f32 = memory.Make(DType::kF32, {5, 300});
        backend.RmsNorm(x, weight, 1e-6f, out, out_f32);
        std::vector<float> all = memory.Get<float>(out_f32);
        for (float value : memory.GetBFloat16(out)) all.push_back(value);
        return all;
      },
      1e-3);
}

TEST_F(CudaOpsTest, RouteWithEveryScoring) {
  for (const bool sigmoid : {false, true}) {
    for (const bool after : {false, true}) {
      for (const bool normalize : {false, true}) {
        const RouterSpec spec = {
            .scoring = sigmoid ? RouterSpec::Scoring::kSigmoid : RouterSpec::Scoring::kSoftmax,
            .softmax_after_topk = after,
            .normalize_topk = normalize,
            .scale = 2.5f,
            .num_experts = 70,
            .top_k = 6};
        ExpectSame(
            [&](Backend& backend, DeviceTensors& memory) {
              std::vector<float> values = RandomFloats(9 * 70, 1);
              values[3] = values[5] = 4.0f;  // a tie goes to the lower id
              const Tensor logits = memory.Put(values, DType::kF32, {9, 70});
              const Tensor ids = memory.Make(DType::kI32, {9, 6});
              const Tensor weights = memory.Make(DType::kF32, {9, 6});
              backend.Route(spec, logits, ids, weights);
              std::vector<float> all = memory.Get<float>(weights);
              for (int32_t id : memory.Get<int32_t>(ids)) all.push_back(static_cast<float>(id));
              return all;
            },
            1e-5);
      }
    }
  }
}

// Prompts and single tokens, written to the cache and attended to, in blocks that lie scattered.
TEST_F(CudaOpsTest, PrepareQkvAndAttentionOverAPagedCache) {
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

// Prompts of many tiles of keys, in chunks that begin within a tile of tokens, one behind another.
// Blocks of a size that is no power of two take the kernel for devices before Hopper.
TEST_F(CudaOpsTest, AttentionOfLongPrompts) {
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

void CudaOpsTest::ExpectSameLongAttention(const AttentionSpec& spec, int block_tokens) {
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

// Few rows an expert and many, shapes of whole tiles and others, slices beyond 2048 columns.
TEST_F(CudaOpsTest, ExpertsAtEveryRowCountAndShape) {
  for (const auto kind : {ExpertFormatKind::kBF16, ExpertFormatKind::kBF12}) {
    ExpectSameExperts(kind, {{64, 24}, {256, 64}, {2048, 40}, {2880, 48}, {36, 10}},
                      {{1}, {3, 5}, {10, 20}, {50, 7}, {150, 30}});
  }
}

// Around the sizes of the products' tiles.
TEST_F(CudaOpsTest, ExpertsWhoseRowsFillNoTile) {
  for (const auto kind : {ExpertFormatKind::kBF16, ExpertFormatKind::kBF12}) {
    ExpectSameExperts(kind, {{2880, 64}, {320, 720}, {200, 104}},
                      {{24, 1, 63, 64, 65}, {96, 97, 128, 129}, {160, 161, 300}});
  }
}

void CudaOpsTest::ExpectSameExperts(ExpertFormatKind kind, const Shapes& shapes,
                                    const std::vector<std::vector<int>>& rows_of) {
  for (const auto& [hidden, intermediate] : shapes) {
    const ExpertFormat bf16(ExpertFormatKind::kBF16, hidden, intermediate);
    const bool encodes = kind == ExpertFormatKind::kBF12;
    const ExpertFormat format(kind, hidden, intermediate,
                              encodes ? Bf12TileEscapeCapacity(200) : 0);
    for (const std::vector<int>& counts : rows_of) {
      const int tokens = (std::accumulate(counts.begin(), counts.end(), 0) + 1) / 2;
      ExpectSame(
          [&, hidden = hidden, intermediate = intermediate](Backend& backend,
                                                            DeviceTensors& memory) {
            std::vector<std::vector<int32_t>> rows;
            std::vector<Buffer> blobs;
            std::vector<ExpertWork> work;
            int32_t next = 0;
            for (size_t e = 0; e < counts.size(); ++e) {
              rows.emplace_back();
              for (int i = 0; i < counts[e]; ++i) rows.back().push_back(next++);
              auto gate = RandomBFloat16s(hidden * intermediate, 10 * e, 0.2f);
              auto up = RandomBFloat16s(hidden * intermediate, 10 * e + 1, 0.2f);
              auto down = RandomBFloat16s(hidden * intermediate, 10 * e + 2, 0.2f);
              blobs.push_back(
                  backend.Allocate(format.blob_bytes(), MemoryKind::kHost, "a blob").value());
              std::vector<std::byte> plain(bf16.blob_bytes());
              bf16.Encode(Tensor(gate.data(), DType::kBF16, {intermediate, hidden}),
                          Tensor(up.data(), DType::kBF16, {intermediate, hidden}),
                          Tensor(down.data(), DType::kBF16, {hidden, intermediate}), plain);
              const std::span<std::byte> blob(blobs.back().data(), format.blob_bytes());
              if (encodes) {
                EXPECT_TRUE(EncodeBf12(bf16, plain, format, blob));
              } else {
                std::copy(plain.begin(), plain.end(), blob.begin());
              }
            }
            for (size_t e = 0; e < counts.size(); ++e) work.push_back({blobs[e].data(), rows[e]});
            const Tensor x =
                memory.Put(RandomBFloat16s(tokens * hidden, 5), DType::kBF16, {tokens, hidden});
            const Tensor out = memory.Make(DType::kF32, {2 * tokens, hidden});
            backend.Experts(format, work, /*top_k=*/2, x, out);
            return memory.Get<float>(out);
          },
          5e-3);
    }
  }
}

}  // namespace
}  // namespace moed::backend
