#include "runtime/backend/cpu/cpu_backend.h"

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "tests/runtime/backend/cpu/random_tensor.h"

namespace moed::backend {
namespace {

std::unique_ptr<Backend> CreateBackend(int num_threads) {
  return CreateCpuBackend({.num_threads = num_threads}).value();
}

TEST(CpuBackendTest, NamesItselfAndItsThreads) {
  EXPECT_THAT(CreateBackend(3)->Description(),
              testing::AllOf(testing::StartsWith("cpu ("), testing::EndsWith(", 3 threads)")));
}

TEST(CpuBackendTest, RefusesNegativeAndAbsurdThreadCounts) {
  for (int num_threads : {-1, 100000}) {
    const auto backend = CreateCpuBackend({.num_threads = num_threads});
    EXPECT_EQ(backend.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(backend.status().message()), testing::HasSubstr("--cpu-threads"));
  }
}

TEST(CpuBackendTest, CopiesBetweenHostAndItsMemory) {
  const auto backend = CreateBackend(1);
  const Buffer buffer = backend->Allocate(64, MemoryKind::kDevice, "a test").value();
  std::vector<std::byte> source(64);
  for (int i = 0; i < 64; ++i) source[i] = static_cast<std::byte>(i);
  ASSERT_TRUE(backend->CopyFromHost(source, buffer.data()).ok());
  std::vector<std::byte> back(64);
  ASSERT_TRUE(backend->CopyToHost(buffer.data(), back).ok());
  EXPECT_TRUE(backend->Synchronize().ok());
  EXPECT_EQ(back, source);
}

// A prompt in one step and the same prompt token by token go through different kernels.
TEST(CpuBackendTest, DecodesWhatAPromptComputes) {
  constexpr int kTokens = 90;
  const AttentionSpec spec = {.query_heads = 4, .kv_heads = 2, .head_dim = 32, .scale = 0.2f};
  const auto backend = CreateBackend(2);
  FloatMatrix frequencies(1, 16);
  std::iota(frequencies.values().begin(), frequencies.values().end(), 0.1f);
  QkPrepare prepare;
  prepare.rope = {.rotary_dims = 32, .inverse_frequencies = frequencies.vector()};
  const std::vector<int32_t> blocks = {2, 0, 1, 4, 3, 5};
  auto run = [&](int chunk, const KvLayer& cache) {
    FloatMatrix q = FloatMatrix::Random(kTokens, 128, 1);
    FloatMatrix k = FloatMatrix::Random(kTokens, 64, 2);
    FloatMatrix v = FloatMatrix::Random(kTokens, 64, 3);
    BFloat16Matrix out(kTokens, 128);
    for (int begin = 0; begin < kTokens; begin += chunk) {
      const AttentionSegment segment = {
          .num_tokens = chunk, .context_start = begin, .kv_blocks = blocks};
      const std::span<const AttentionSegment> segments(&segment, 1);
      const Tensor rows = q.tensor().Rows(begin, chunk);
      backend->PrepareQkv(prepare, spec, segments, rows, k.tensor().Rows(begin, chunk),
                          v.tensor().Rows(begin, chunk), cache);
      backend->Attention(spec, segments, rows, cache, out.tensor().Rows(begin, chunk));
    }
    return out;
  };
  BFloat16Matrix keys(6 * 16, 64);
  BFloat16Matrix values(6 * 16, 64);
  const KvLayer cache = {keys.tensor(), values.tensor(), 16};
  const BFloat16Matrix prompt = run(kTokens, cache);
  const BFloat16Matrix decoded = run(1, cache);
  for (int t = 0; t < kTokens; ++t) {
    for (int i = 0; i < 128; ++i) {
      // Two sums that round differently can fall on either side of a bf16 boundary.
      ASSERT_NEAR(decoded.at(t, i), prompt.at(t, i), 1e-5 + std::abs(prompt.at(t, i)) / 128);
    }
  }
}

TEST(NoCudaTest, SaysHowToGetCuda) {
  if (CudaAvailable()) GTEST_SKIP() << "this build has CUDA";
  const auto backend = CreateCudaBackend({});
  ASSERT_FALSE(backend.ok());
  EXPECT_THAT(std::string(backend.status().message()), testing::HasSubstr("--device cpu"));
}

}  // namespace
}  // namespace moed::backend
