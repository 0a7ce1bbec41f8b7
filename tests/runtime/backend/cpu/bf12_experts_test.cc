// Every kernel that this CPU can run, over experts in bf12: within the bound of the formula, and
// bit for bit what the same experts in bf16 give where that is promised.
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/bf12.h"
#include "tests/runtime/backend/cpu/expert_kernels_test.h"

namespace moed::backend {
namespace {

// The same expert in bf12, with room for any list of escapes.
struct Bf12Expert {
  explicit Bf12Expert(const Expert& expert)
      : format(ExpertFormatKind::kBF12, expert.format.hidden(), expert.format.intermediate(),
               Bf12TileEscapeCapacity(1000)),
        blob(hwy::AllocateAligned<std::byte>(format.blob_bytes())) {
    EXPECT_TRUE(EncodeBf12(expert.format, {expert.blob.get(), expert.format.blob_bytes()}, format,
                           {blob.get(), format.blob_bytes()}));
  }
  ExpertFormat format;
  hwy::AlignedFreeUniquePtr<std::byte[]> blob;
};

class Bf12ExpertsTest : public ExpertKernelsTest {};

INSTANTIATE_TEST_SUITE_P(Kernels, Bf12ExpertsTest, testing::ValuesIn(Variants()), NameOf);

// Values far outside the windows of their rows, in every part; 15 in some neurons.
void AddOutliers(Expert& expert) {
  const int64_t hidden = expert.format.hidden();
  const int64_t intermediate = expert.format.intermediate();
  for (int64_t i = 0; i < intermediate; i += 3) {
    const float large = i % 2 == 0 ? 3000.0f : -3000.0f;
    expert.gate[i * hidden + i % hidden] = ToBFloat16(large);
    expert.up[i * hidden + (7 * i + 1) % hidden] = ToBFloat16(1e-30f);
    for (int64_t h = 0; h < hidden && i % 2 == 0; h += (hidden + 12) / 13) {
      expert.down[h * intermediate + i] = ToBFloat16(large * static_cast<float>(1 + h % 3));
    }
  }
  expert.EncodeBlob();
}

TEST_P(Bf12ExpertsTest, MatchesTheFormulaInDouble) {
  const std::vector<std::pair<int64_t, int64_t>> shapes = {{40, 5}, {128, 33}, {544, 160}};
  for (const auto& [hidden, intermediate] : shapes) {
    for (const bool outliers : {false, true}) {
      Expert expert(hidden, intermediate, 7);
      if (outliers) AddOutliers(expert);
      const Bf12Expert bf12(expert);
      for (const int64_t rows : {1, 2, 3, 4, 5, 8, 12, 13, 40}) {
        SCOPED_TRACE(testing::Message() << "H " << hidden << ", I " << intermediate << ", rows "
                                        << rows << ", outliers " << outliers);
        ExpertsRunner runner(2, kernels(), hidden, rows);
        const std::vector<int32_t> all = FirstRows(rows);
        const std::vector<float> out = runner.Run(bf12.format, {{bf12.blob.get(), all}}, 1);
        for (int64_t t = 0; t < rows; ++t) {
          ASSERT_LT(RelativeError(expert.Reference(runner.XRow(t)), &out[t * hidden]), 4e-3);
        }
      }
    }
  }
}

TEST_P(Bf12ExpertsTest, TakesANeuronWithMoreEscapesThanItsHeaderCounts) {
  Expert expert(544, 40, 12);
  for (int64_t h = 0; h < 250; ++h) {
    expert.gate[37 * 544 + 2 * h] = ToBFloat16(1e-30f);
    expert.up[37 * 544 + 2 * h + 1] = ToBFloat16(1e-30f);
  }
  expert.EncodeBlob();
  const Bf12Expert bf12(expert);
  ASSERT_GE(CountBf12Escapes(bf12.format, {bf12.blob.get(), bf12.format.blob_bytes()}).total, 450);
  for (const int64_t rows : {1, 3, 40}) {
    ExpertsRunner runner(2, kernels(), 544, rows);
    const std::vector<int32_t> all = FirstRows(rows);
    const std::vector<float> out = runner.Run(bf12.format, {{bf12.blob.get(), all}}, 1);
    for (int64_t t = 0; t < rows; ++t) {
      ASSERT_LT(RelativeError(expert.Reference(runner.XRow(t)), &out[t * 544]), 4e-3);
    }
  }
}

// Whatever the exponents of a row, and so the base of its window; no value is an escape.
TEST_P(Bf12ExpertsTest, GivesTheBitsOfBf16ForFewRowsOfAnyExponent) {
  constexpr int64_t kHidden = 256, kNeurons = 40;
  Expert expert(kHidden, kNeurons, 14);
  std::mt19937 random(9);
  const int exponents[] = {1, 20, 51, 52, 90, 111, 127, 171, 172, 190};
  for (int64_t i = 0; i < kNeurons; ++i) {
    const auto value = [&](int base) {
      return static_cast<BFloat16>((random() % 2) << 15 | (base + random() % 10) << 7 |
                                   random() % 128);
    };
    for (int64_t h = 0; h < kHidden; ++h) {
      expert.gate[i * kHidden + h] = value(exponents[i % 10]);
      expert.up[i * kHidden + h] = value(exponents[(i + i / 10) % 6]);
      expert.down[h * kNeurons + i] = value(exponents[(i + 2 * (i / 10)) % 7]);
    }
  }
  expert.EncodeBlob();
  const Bf12Expert bf12(expert);
  ASSERT_EQ(CountBf12Escapes(bf12.format, {bf12.blob.get(), bf12.format.blob_bytes()}).total, 0);
  for (const int64_t rows : {1, 3, 4}) {
    ExpertsRunner runner(2, kernels(), kHidden, rows);
    const std::vector<int32_t> all = FirstRows(rows);
    EXPECT_EQ(runner.Run(bf12.format, {{bf12.blob.get(), all}}, 1),
              runner.Run(expert.format, {{expert.blob.get(), all}}, 1));
  }
}

// Many rows are multiplied by decoded weights: the true bits.
TEST_P(Bf12ExpertsTest, GivesTheBitsOfBf16ForManyRows) {
  Expert expert(320, 200, 11);
  AddOutliers(expert);
  const Bf12Expert bf12(expert);
  ExpertsRunner runner(2, kernels(), 320, 70);
  const std::vector<int32_t> all = FirstRows(70);
  EXPECT_EQ(runner.Run(bf12.format, {{bf12.blob.get(), all}}, 1),
            runner.Run(expert.format, {{expert.blob.get(), all}}, 1));
}

TEST_P(Bf12ExpertsTest, BitsDependNeitherOnOtherExpertsNorOnThreads) {
  Expert expert(160, 224, 10);
  AddOutliers(expert);
  const Bf12Expert bf12(expert);
  const std::vector<int32_t> few = {0, 1};
  const std::vector<int32_t> many = {2,  3,  4,  5,  6,  7,  8,  9,  10,
                                     11, 12, 13, 14, 15, 16, 17, 18, 19};
  ExpertsRunner alone(1, kernels(), 160, 20);
  ExpertsRunner three_threads(3, kernels(), 160, 20);
  const std::vector<float> together =
      three_threads.Run(bf12.format, {{bf12.blob.get(), few}, {bf12.blob.get(), many}}, 1);
  const std::vector<float> first = alone.Run(bf12.format, {{bf12.blob.get(), few}}, 1);
  const std::vector<float> second = alone.Run(bf12.format, {{bf12.blob.get(), many}}, 1);
  const size_t split = few.size() * 160;
  EXPECT_EQ(std::memcmp(together.data(), first.data(), split * sizeof(float)), 0);
  EXPECT_EQ(
      std::memcmp(&together[split], &second[split], (together.size() - split) * sizeof(float)), 0);
}

}  // namespace
}  // namespace moed::backend
