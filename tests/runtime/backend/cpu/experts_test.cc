// Every kernel that this CPU can run, against the formula in double precision.
#include "runtime/backend/cpu/experts.h"

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/backend/cpu/experts_activation.h"
#include "tests/runtime/backend/cpu/expert_kernels_test.h"

namespace moed::backend {
namespace {

class ExpertsTest : public ExpertKernelsTest {};

INSTANTIATE_TEST_SUITE_P(Kernels, ExpertsTest, testing::ValuesIn(Variants()), NameOf);

// Shapes on both sides of every block and tile; row counts of both paths and their edges.
TEST_P(ExpertsTest, MatchesTheFormulaInDouble) {
  const std::vector<std::pair<int64_t, int64_t>> shapes = {{1, 1},    {40, 5},   {64, 33},
                                                           {96, 160}, {288, 64}, {544, 129}};
  for (const auto& [hidden, intermediate] : shapes) {
    const Expert expert(hidden, intermediate, 7);
    for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 31, 48, 131}) {
      SCOPED_TRACE(testing::Message()
                   << "H " << hidden << ", I " << intermediate << ", rows " << rows);
      ExpertsRunner runner(2, kernels(), hidden, rows);
      const std::vector<int32_t> all = FirstRows(rows);
      const std::vector<float> out = runner.Run(expert.format, {{expert.blob.get(), all}}, 1);
      for (int64_t t = 0; t < rows; ++t) {
        // A sum on the edge between two bf16 activations may round to either: 2^-9 of one of them.
        ASSERT_LT(RelativeError(expert.Reference(runner.XRow(t)), out.data() + t * hidden), 4e-3);
      }
    }
  }
}

// Depth beyond one block of the second product, and more rows than one block.
TEST_P(ExpertsTest, MatchesTheFormulaForManyNeuronsAndRows) {
  const Expert expert(64, 1100, 3);
  constexpr int64_t kRows = 300;
  ExpertsRunner runner(2, kernels(), 64, kRows);
  const std::vector<int32_t> all = FirstRows(kRows);
  const std::vector<float> out = runner.Run(expert.format, {{expert.blob.get(), all}}, 1);
  for (int64_t t = 0; t < kRows; t += 23) {
    ASSERT_LT(RelativeError(expert.Reference(runner.XRow(t)), out.data() + t * 64), 2e-3);
  }
}

TEST_P(ExpertsTest, RowsNameTokenAndRankAndOthersStayUntouched) {
  constexpr int kTopK = 3;
  const Expert first(64, 32, 1);
  const Expert second(64, 32, 2);
  const std::vector<int32_t> rows_of_first = {1, 3, 14};
  const std::vector<int32_t> rows_of_second = {0, 5, 7, 9, 10, 11, 12, 13, 2, 4, 6, 16};
  ExpertsRunner runner(2, kernels(), 64, 6);
  const std::vector<float> out = runner.Run(first.format,
                                            {{first.blob.get(), rows_of_first},
                                             {second.blob.get(), {}},
                                             {second.blob.get(), rows_of_second}},
                                            kTopK);
  for (const int32_t row : rows_of_first) {
    EXPECT_LT(RelativeError(first.Reference(runner.XRow(row / kTopK)), &out[row * 64]), 4e-3);
  }
  for (const int32_t row : rows_of_second) {
    EXPECT_LT(RelativeError(second.Reference(runner.XRow(row / kTopK)), &out[row * 64]), 4e-3);
  }
  for (const int32_t row : {8, 15, 17}) {
    EXPECT_THAT(std::vector<float>(&out[row * 64], &out[row * 64] + 64),
                testing::Each(ExpertsRunner::kUntouched));
  }
}

// Contract (a): waves of a paging cache, other experts and threads change no bit.
TEST_P(ExpertsTest, BitsDependNeitherOnOtherExpertsNorOnThreads) {
  const std::vector<int64_t> counts = {1, 2, 5, 8, 9, 33, 200};
  std::vector<Expert> experts;
  std::vector<std::vector<int32_t>> rows(counts.size());
  int32_t next = 0;
  for (size_t e = 0; e < counts.size(); ++e) {
    experts.emplace_back(160, 224, 10 * e);
    for (int64_t r = 0; r < counts[e]; ++r) rows[e].push_back(next++);
  }
  const ExpertFormat& format = experts[0].format;
  std::vector<ExpertWork> work;
  for (size_t e = 0; e < experts.size(); ++e) work.push_back({experts[e].blob.get(), rows[e]});

  ExpertsRunner alone(1, kernels(), 160, next);
  ExpertsRunner three_threads(3, kernels(), 160, next);
  const std::vector<float> together = three_threads.Run(format, work, 1);
  for (size_t e = 0; e < work.size(); ++e) {
    const std::vector<float> single = alone.Run(format, {work[e]}, 1);
    for (const int32_t row : rows[e]) {
      ASSERT_EQ(std::memcmp(&together[row * 160], &single[row * 160], 160 * sizeof(float)), 0)
          << "expert " << e << ", row " << row;
    }
  }
}

// What lies behind the last neuron's rows must not count: 0 * NaN would show.
TEST_P(ExpertsTest, ReadsNothingBeyondTheExpert) {
  Expert expert(64, 21, 5);
  const size_t used = 21 * expert.format.neuron_bytes();
  std::memset(expert.blob.get() + used, 0xff, expert.format.blob_bytes() - used);
  for (const int64_t rows : {1, 4, 20}) {
    ExpertsRunner runner(1, kernels(), 64, rows);
    const std::vector<int32_t> all = FirstRows(rows);
    const std::vector<float> out = runner.Run(expert.format, {{expert.blob.get(), all}}, 1);
    EXPECT_LT(RelativeError(expert.Reference(runner.XRow(rows - 1)), &out[(rows - 1) * 64]), 4e-3);
  }
}

TEST_P(ExpertsTest, ANaNStaysInItsRow) {
  const Expert expert(64, 32, 5);
  for (const int64_t rows : {3, 40}) {
    ExpertsRunner runner(1, kernels(), 64, rows);
    const_cast<BFloat16*>(runner.XRow(1))[7] = 0x7fc0;
    const std::vector<int32_t> all = FirstRows(rows);
    const std::vector<float> out = runner.Run(expert.format, {{expert.blob.get(), all}}, 1);
    for (int64_t row = 0; row < rows; ++row) {
      EXPECT_EQ(std::isnan(out[row * 64]), row == 1) << row;
    }
  }
}

TEST_P(ExpertsTest, ActivationFollowsSiluOverAllOfItsRange) {
  std::vector<float> gate;
  for (float g = -120.0f; g < 120.0f; g += 0.37f) gate.push_back(g);
  const std::vector<float> up(gate.size(), 1.5f);
  std::vector<BFloat16> act(gate.size());
  ActivateSwiGlu(gate.data(), up.data(), static_cast<int64_t>(gate.size()), act.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    const double exact = gate[i] / (1.0 + std::exp(-double{gate[i]})) * 1.5;
    EXPECT_NEAR(ToFloat(act[i]), exact, std::abs(exact) * 0.004 + 1e-30) << gate[i];
  }
}

TEST(ExpertsOpTest, NoWorkIsNoWork) {
  ExpertsRunner runner(2, BestExpertKernels(), 64, 1);
  const ExpertFormat format(ExpertFormatKind::kBF16, 64, 32);
  EXPECT_THAT(runner.Run(format, {}, 1), testing::Each(ExpertsRunner::kUntouched));
}

}  // namespace
}  // namespace moed::backend
