// The kernels for few rows as a thread's pieces call them: any part of an expert's neurons in each
// call, weighted rows, sums that the pieces share, and x that is prepared once.
#include <algorithm>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/backend/bf12.h"
#include "tests/runtime/backend/cpu/expert_kernels_test.h"

namespace moed::backend {
namespace {

constexpr int64_t kHidden = 544;
constexpr int64_t kIntermediate = 120;

class FewRowsTest : public ExpertKernelsTest {
 protected:
  FewRowsTest() : expert_(kHidden, kIntermediate, 21) {
    for (int64_t i = 0; i < kIntermediate; i += 5) {  // escapes in every part
      expert_.gate[i * kHidden + 3 * i] = ToBFloat16(700.0f);
      expert_.up[i * kHidden + i] = ToBFloat16(1e-30f);
      expert_.down[(2 * i + 1) * kIntermediate + i] = ToBFloat16(-900.0f);
    }
    expert_.EncodeBlob();
  }

  // weights[r] * expert(x[r]), from pieces of random lengths.
  std::vector<std::vector<float>> RunPieces(const ExpertFormat& format, const std::byte* blob,
                                            const std::vector<std::vector<BFloat16>>& x,
                                            const std::vector<float>& weights) {
    const auto rows = static_cast<int>(x.size());
    const int64_t width = format.row_values();
    auto scratch = hwy::AllocateAligned<float>(kernels().few_rows_limit * width);
    auto sums = hwy::AllocateAligned<float>(rows * width);
    std::fill_n(sums.get(), rows * width, 0.0f);
    std::vector<const BFloat16*> x_rows;
    std::vector<float*> y_rows;
    for (int r = 0; r < rows; ++r) {
      x_rows.push_back(x[r].data());
      y_rows.push_back(sums.get() + r * width);
    }
    for (int64_t first = 0; first < kIntermediate;) {
      const int64_t count = std::min<int64_t>(1 + random_() % 50, kIntermediate - first);
      kernels().few_rows({.format = format, .blob = blob, .first = first, .count = count},
                         {.x = x_rows.data(),
                          .weights = weights.data(),
                          .num = rows,
                          .width = width,
                          .scratch = scratch.get(),
                          .y = y_rows.data(),
                          .prepared = first > 0});
      first += count;
    }
    kernels().order_sums(sums.get(), rows * width);
    std::vector<std::vector<float>> out;
    for (const float* row : y_rows) out.emplace_back(row, row + kHidden);
    return out;
  }

  void ExpectTheFormula(const ExpertFormat& format, const std::byte* blob) {
    std::normal_distribution<float> normal;
    for (int rows = 1; rows <= kernels().few_rows_limit; ++rows) {
      std::vector<std::vector<BFloat16>> x(rows, std::vector<BFloat16>(format.row_values()));
      std::vector<float> weights(rows);
      for (int r = 0; r < rows; ++r) {
        std::generate_n(x[r].begin(), kHidden, [&] { return ToBFloat16(normal(random_)); });
        weights[r] = 0.25f + static_cast<float>(r) / 8;
      }
      const std::vector<std::vector<float>> out = RunPieces(format, blob, x, weights);
      for (int r = 0; r < rows; ++r) {
        std::vector<double> want = expert_.Reference(x[r].data());
        for (double& value : want) value *= weights[r];
        ASSERT_LT(RelativeError(want, out[r].data()), 4e-3) << "row " << r << " of " << rows;
      }
    }
  }

  Expert expert_;
  std::mt19937 random_{4};
};

INSTANTIATE_TEST_SUITE_P(Kernels, FewRowsTest, testing::ValuesIn(Variants()), NameOf);

TEST_P(FewRowsTest, AddsUpPiecesOfAnyLengthInBf16) {
  ExpectTheFormula(expert_.format, expert_.blob.get());
}

TEST_P(FewRowsTest, AddsUpPiecesOfAnyLengthInBf12) {
  const ExpertFormat format(ExpertFormatKind::kBF12, kHidden, kIntermediate,
                            Bf12TileEscapeCapacity(200));
  auto blob = hwy::AllocateAligned<std::byte>(format.blob_bytes());
  ASSERT_TRUE(EncodeBf12(expert_.format, {expert_.blob.get(), expert_.format.blob_bytes()}, format,
                         {blob.get(), format.blob_bytes()}));
  ExpectTheFormula(format, blob.get());
}

}  // namespace
}  // namespace moed::backend
