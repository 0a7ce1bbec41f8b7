// For tests of the CPU's experts: every set of kernels that this CPU can run, experts of random
// values with the formula in double precision, and the op over one x.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/aligned_allocator.h"
#include "hwy/targets.h"
#include "runtime/backend/cpu/experts.h"
#include "runtime/backend/cpu/experts_kernels.h"

namespace moed::backend {

// A table of kernels, and the Highway target that the portable one is pinned to.
struct Variant {
  std::string name;
  const ExpertKernels* kernels;
  int64_t target = 0;  // 0: the best
};

std::vector<Variant> Variants();

// For INSTANTIATE_TEST_SUITE_P.
std::string NameOf(const testing::TestParamInfo<Variant>& variant);

// An expert in checkpoint layout and as a blob.
struct Expert {
  Expert(int64_t hidden, int64_t intermediate, uint32_t seed);

  // Anew, after a change of the values.
  void EncodeBlob();
  // y = sum over i of bf16(silu(g_i . x) * (u_i . x)) * d_i
  std::vector<double> Reference(const BFloat16* x) const;

  ExpertFormat format;
  std::vector<BFloat16> gate;  // [I, H]
  std::vector<BFloat16> up;    // [I, H]
  std::vector<BFloat16> down;  // [H, I]
  hwy::AlignedFreeUniquePtr<std::byte[]> blob;
};

// The op with its pool, over one x.
class ExpertsRunner {
 public:
  ExpertsRunner(int threads, const ExpertKernels& kernels, int64_t hidden, int64_t tokens);

  const BFloat16* XRow(int64_t token) const { return x_.data() + token * x_tensor_.dim(1); }

  // Output [T * top_k, H]; rows of no item keep kUntouched.
  std::vector<float> Run(const ExpertFormat& format, const std::vector<ExpertWork>& work,
                         int top_k);

  static constexpr float kUntouched = -12345.0f;

 private:
  ThreadPool pool_;
  ExpertsOp op_;
  std::vector<BFloat16> x_;
  Tensor x_tensor_;
};

// 0, 1 and so on.
std::vector<int32_t> FirstRows(int64_t count);

// Root of the mean square of the difference, over that of the reference.
double RelativeError(const std::vector<double>& reference, const float* actual);

class ExpertKernelsTest : public testing::TestWithParam<Variant> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam().target); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
  const ExpertKernels& kernels() const { return *GetParam().kernels; }
};

}  // namespace moed::backend
