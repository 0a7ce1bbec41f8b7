// For tests of single ops: the same values on a GPU and on the CPU, whose results may differ by
// little.
#pragma once

#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/cpu/cpu_backend.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "tests/runtime/backend/cuda/device_tensors.h"

namespace moed::backend {

class BothBackendsTest : public ::testing::Test {
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

  std::unique_ptr<Backend> cpu_;
  std::unique_ptr<Backend> cuda_;
};

}  // namespace moed::backend
