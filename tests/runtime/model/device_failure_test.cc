// What a GPU machine can do to a model: refuse to pin its experts, or fail in a kernel.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "runtime/model/model_runner.h"
#include "tests/golden/golden_case.h"
#include "tests/runtime/model/greedy_tokens.h"

namespace moed::model {
namespace {

using ::testing::HasSubstr;

class DeviceFailureTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!backend::CudaAvailable()) GTEST_SKIP() << "no GPU on this machine, or no CUDA here";
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }

  static absl::StatusOr<std::unique_ptr<ModelRunner>> Runner(
      ColdPathPreference cold_path, std::unique_ptr<backend::Backend> backend) {
    auto checkpoint =
        OpenCheckpoint({.directory = testing::LoadGoldenCase("demo")->checkpoint_directory});
    if (!checkpoint.ok()) return checkpoint.status();
    ModelRunnerOptions options;
    options.expert_budget = "50%";
    options.memory_limit_bytes = int64_t{1} << 30;
    options.gpu_memory_utilization = 1;
    options.max_num_seqs = 2;
    options.max_num_batched_tokens = 64;
    options.max_model_len = 128;
    options.kv_cache_bytes = int64_t{64} << 20;
    options.cold_path = cold_path;
    options.io_threads = 2;
    return ModelRunner::Create(std::move(options), *std::move(checkpoint), std::move(backend));
  }

  // More than the tables of a step, less than the demo model's experts.
  static std::unique_ptr<backend::Backend> LittlePinning() {
    return *backend::CreateCudaBackend({.most_pinned_bytes = size_t{4} << 20});
  }
};

// Greedy tokens after a prompt.
std::vector<int32_t> Continue(ModelRunner& runner) {
  return testing::GreedyTokens(runner, {5, 99, 1024, 7, 300}, 12);
}

TEST_F(DeviceFailureTest, ExpertsThatCannotBePinnedArePagedIn) {
  auto runner = Runner(ColdPathPreference::kAuto, LittlePinning());
  ASSERT_TRUE(runner.ok()) << runner.status();
  EXPECT_EQ((*runner)->cold_path(), "page");
  EXPECT_THAT((*runner)->cold_path_note(), HasSubstr("pinning"));
  auto on_cpu = Runner(ColdPathPreference::kAuto, *backend::CreateCpuBackend({.num_threads = 2}));
  ASSERT_TRUE(on_cpu.ok()) << on_cpu.status();
  EXPECT_EQ(Continue(**runner), Continue(**on_cpu));
}

TEST_F(DeviceFailureTest, APathThatWasAskedForIsRefusedWithoutPinning) {
  const auto runner = Runner(ColdPathPreference::kLink, LittlePinning());
  EXPECT_EQ(runner.status().code(), absl::StatusCode::kFailedPrecondition) << runner.status();
  EXPECT_THAT(runner.status().ToString(), HasSubstr("the experts in host memory"));
}

// In a process of its own, which no device can serve afterwards.
TEST_F(DeviceFailureTest, AFaultInAKernelIsATypedErrorForGood) {
  const auto fault = [] {
    const auto backend = *backend::CreateCudaBackend({});
    constexpr int kHeads = 2;
    constexpr int kWidth = kHeads * 64;
    std::vector<backend::Buffer> owners;
    const auto memory = [&](size_t bytes) {
      owners.push_back(*backend->Allocate(bytes, backend::MemoryKind::kDevice, "a test"));
      return owners.back().data();
    };
    const backend::Tensor q(memory(4 * kWidth), backend::DType::kF32, {1, kWidth});
    const backend::Tensor out(memory(2 * kWidth), backend::DType::kBF16, {1, kWidth});
    const backend::Tensor keys(memory(32 * kWidth), backend::DType::kBF16, {1, 16, kWidth});
    // A block far outside of the cache.
    const std::vector<int32_t> blocks = {1 << 24};
    const backend::AttentionSegment segments[] = {{0, 1, 0, blocks}};
    backend->BeginStep(std::vector<int32_t>{0}, segments);
    backend->Attention({.query_heads = kHeads, .kv_heads = kHeads, .head_dim = 64, .scale = 1.0f},
                       segments, q, {keys, keys, 16}, out);
    const absl::Status first = backend->Synchronize();
    const absl::Status second = backend->Synchronize();
    std::fprintf(stderr, "first: %s\nsecond: %s\n", first.ToString().c_str(),
                 second.ToString().c_str());
    std::_Exit(!first.ok() && first == second ? 0 : 1);
  };
  EXPECT_EXIT(fault(), ::testing::ExitedWithCode(0), "illegal memory access");
}

}  // namespace
}  // namespace moed::model
