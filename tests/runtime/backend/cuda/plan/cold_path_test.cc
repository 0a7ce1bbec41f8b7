// A GPU that waits for a CPU in vain: every way to ask it ends in an error with a type, in time.
#include "runtime/backend/device_experts.h"

#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "tests/runtime/backend/cuda/expert_layers.h"

namespace moed::backend {
namespace {

// Workers that do not look are what a stopped process looks like to the GPU.
TEST(CudaColdPathTest, AnAnswerThatDoesNotComeIsATypedErrorForGood) {
  if (!CudaAvailable()) GTEST_SKIP() << "no GPU on this machine, or no CUDA in this build";
  const std::unique_ptr<Backend> backend = CreateCudaBackend({}).value();
  ExpertLayers layers(*backend, FormatOf(ExpertFormatKind::kBF16, ExpertShape(256, 64)),
                      ColdPath::kCpu,
                      /*timeout_ms=*/200);
  const std::vector<int32_t> ids = {0, 1, 2};
  layers.Run(0, ids);  // outside of a step
  EXPECT_EQ(layers.experts().EndStep().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(layers.experts().BeginStep(1).code(), absl::StatusCode::kUnavailable);
  layers.Run(1, ids);
  EXPECT_EQ(layers.experts().EndStep().code(), absl::StatusCode::kUnavailable);
}

TEST(CudaColdPathTest, ARoutedTokenWithoutAnAnswerIsATypedErrorForGood) {
  if (!CudaAvailable()) GTEST_SKIP() << "no GPU on this machine, or no CUDA in this build";
  const std::unique_ptr<Backend> backend = CreateCudaBackend({}).value();
  const RouterSpec spec = {.num_experts = ExpertLayers::kExperts, .top_k = ExpertLayers::kTopK};
  for (const ExpertFormatKind format : {ExpertFormatKind::kBF16, ExpertFormatKind::kBF12}) {
    for (const ColdPath cold_path : {ColdPath::kCpu, ColdPath::kHybrid}) {
      ExpertLayers layers(*backend, FormatOf(format, ExpertShape(256, 64)), cold_path,
                          /*timeout_ms=*/50);
      layers.RouteAndRun(0, spec, /*tokens=*/1, /*seed=*/1);  // outside of a step
      EXPECT_EQ(layers.experts().EndStep().code(), absl::StatusCode::kUnavailable);
      EXPECT_EQ(layers.experts().BeginStep(1).code(), absl::StatusCode::kUnavailable);
      layers.RouteAndRun(1, spec, /*tokens=*/1, /*seed=*/2);
      EXPECT_EQ(layers.experts().EndStep().code(), absl::StatusCode::kUnavailable);
    }
  }
}

}  // namespace
}  // namespace moed::backend
