// Runs a test once for every instruction set that this CPU and the kernels share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/targets.h"

namespace moed::backend {

class CpuTargetTest : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

// The vector targets of this CPU, one bit each.
inline std::vector<int64_t> VectorTargets() {
  std::vector<int64_t> targets;
  for (int64_t rest = hwy::SupportedTargets() & ~(HWY_SCALAR | HWY_EMU128 | HWY_SSSE3); rest != 0;
       rest &= rest - 1) {
    targets.push_back(rest & -rest);
  }
  return targets;
}

inline std::string NameOfTarget(const testing::TestParamInfo<int64_t>& info) {
  return hwy::TargetName(info.param);
}

// Instantiates the suite's TEST_Ps, named ".../AVX2".
#define MOED_INSTANTIATE_CPU_TARGETS(suite) \
  INSTANTIATE_TEST_SUITE_P(, suite, testing::ValuesIn(VectorTargets()), NameOfTarget)

}  // namespace moed::backend
