// Every kernel that this CPU can run, against the formula in double precision.
#include "runtime/backend/cpu/experts.h"

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hwy/aligned_allocator.h"
#include "hwy/targets.h"
#include "runtime/backend/bf12.h"
#include "runtime/backend/cpu/experts_activation.h"
#include "runtime/backend/cpu/experts_kernels.h"

namespace moed::backend {
namespace {

// A table of kernels, and the Highway target that the portable one is pinned to.
struct Variant {
  std::string name;
  const ExpertKernels* kernels;
  int64_t target = 0;  // 0: the best
};

std::vector<Variant> Variants() {
  std::vector<Variant> variants;
  for (const int64_t target : {HWY_SSE4, HWY_AVX2, HWY_AVX3}) {
    if ((hwy::SupportedTargets() & target) == 0) continue;
    variants.push_back({hwy::TargetName(target), &PortableExpertKernels(), target});
  }
  if (const ExpertKernels* kernels = Avx512Bf16ExpertKernels()) {
    variants.push_back({"AVX512BF16", kernels});
  }
  if (const ExpertKernels* kernels = AmxExpertKernels()) variants.push_back({"AMX", kernels});
  return variants;
}

std::vector<BFloat16> RandomValues(int64_t count, float scale, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<BFloat16> values(count);
  for (BFloat16& value : values) value = ToBFloat16(normal(random));
  return values;
}

// An expert in checkpoint layout and as a blob.
struct Expert {
  Expert(int64_t hidden, int64_t intermediate, uint32_t seed)
      : format(ExpertFormatKind::kBF16, hidden, intermediate),
        gate(RandomValues(hidden * intermediate, 2.0f / std::sqrt(hidden), seed)),
        up(RandomValues(hidden * intermediate, 2.0f / std::sqrt(hidden), seed + 1)),
        down(RandomValues(hidden * intermediate, 1.0f / std::sqrt(intermediate), seed + 2)),
        blob(hwy::AllocateAligned<std::byte>(format.blob_bytes())) {
    EncodeBlob();
  }

  void EncodeBlob() {
    const int64_t hidden = format.hidden();
    const int64_t intermediate = format.intermediate();
    format.Encode(Tensor(gate.data(), DType::kBF16, {intermediate, hidden}),
                  Tensor(up.data(), DType::kBF16, {intermediate, hidden}),
                  Tensor(down.data(), DType::kBF16, {hidden, intermediate}),
                  {blob.get(), format.blob_bytes()});
  }

  // y = sum over i of bf16(silu(g_i . x) * (u_i . x)) * d_i
  std::vector<double> Reference(const BFloat16* x) const {
    const int64_t hidden = format.hidden();
    std::vector<double> y(hidden, 0.0);
    for (int64_t i = 0; i < format.intermediate(); ++i) {
      double g = 0.0;
      double u = 0.0;
      for (int64_t h = 0; h < hidden; ++h) {
        g += double{ToFloat(gate[i * hidden + h])} * ToFloat(x[h]);
        u += double{ToFloat(up[i * hidden + h])} * ToFloat(x[h]);
      }
      const double act = ToFloat(ToBFloat16(static_cast<float>(g / (1.0 + std::exp(-g)) * u)));
      for (int64_t h = 0; h < hidden; ++h) {
        y[h] += act * ToFloat(down[h * format.intermediate() + i]);
      }
    }
    return y;
  }

  ExpertFormat format;
  std::vector<BFloat16> gate;  // [I, H]
  std::vector<BFloat16> up;    // [I, H]
  std::vector<BFloat16> down;  // [H, I]
  hwy::AlignedFreeUniquePtr<std::byte[]> blob;
};

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

// The op with its pool, over one x.
class ExpertsRunner {
 public:
  ExpertsRunner(int threads, const ExpertKernels& kernels, int64_t hidden, int64_t tokens)
      : pool_(threads), op_(pool_, kernels), x_(RandomValues(tokens * hidden, 1.0f, 99)) {
    x_tensor_ = Tensor(x_.data(), DType::kBF16, {tokens, hidden});
  }

  const BFloat16* XRow(int64_t token) const { return x_.data() + token * x_tensor_.dim(1); }

  // Output [T * top_k, H]; rows of no item keep kUntouched.
  std::vector<float> Run(const ExpertFormat& format, const std::vector<ExpertWork>& work,
                         int top_k) {
    const int64_t rows = x_tensor_.dim(0) * top_k;
    std::vector<float> out(rows * format.hidden(), kUntouched);
    op_.Run(format, work, top_k, x_tensor_,
            Tensor(out.data(), DType::kF32, {rows, format.hidden()}));
    return out;
  }

  static constexpr float kUntouched = -12345.0f;

 private:
  ThreadPool pool_;
  ExpertsOp op_;
  std::vector<BFloat16> x_;
  Tensor x_tensor_;
};

std::vector<int32_t> FirstRows(int64_t count) {
  std::vector<int32_t> rows(count);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

// Root of the mean square of the difference, over that of the reference.
double RelativeError(const std::vector<double>& reference, const float* actual) {
  double difference = 0.0;
  double total = 0.0;
  for (size_t i = 0; i < reference.size(); ++i) {
    difference += std::pow(actual[i] - reference[i], 2);
    total += std::pow(reference[i], 2);
  }
  return std::sqrt(difference / total);
}

class ExpertsTest : public testing::TestWithParam<Variant> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam().target); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
  const ExpertKernels& kernels() const { return *GetParam().kernels; }
};

std::string NameOf(const testing::TestParamInfo<Variant>& variant) { return variant.param.name; }

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

TEST_P(ExpertsTest, Bf12MatchesTheFormulaInDouble) {
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

TEST_P(ExpertsTest, Bf12TakesANeuronWithMoreEscapesThanItsHeaderCounts) {
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
TEST_P(ExpertsTest, Bf12GivesTheBitsOfBf16ForFewRowsOfAnyExponent) {
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
TEST_P(ExpertsTest, Bf12GivesTheBitsOfBf16ForManyRows) {
  Expert expert(320, 200, 11);
  AddOutliers(expert);
  const Bf12Expert bf12(expert);
  ExpertsRunner runner(2, kernels(), 320, 70);
  const std::vector<int32_t> all = FirstRows(70);
  EXPECT_EQ(runner.Run(bf12.format, {{bf12.blob.get(), all}}, 1),
            runner.Run(expert.format, {{expert.blob.get(), all}}, 1));
}

TEST_P(ExpertsTest, Bf12BitsDependNeitherOnOtherExpertsNorOnThreads) {
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
