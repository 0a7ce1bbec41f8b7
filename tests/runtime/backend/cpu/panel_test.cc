#include "runtime/backend/cpu/panel.h"

#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::backend {
namespace {

// Values that tell where they come from; never zero.
BFloat16 ValueAt(int64_t depth, int64_t column) {
  return static_cast<BFloat16>(1 + depth * 64 + column);
}

int64_t RoundUpToEven(int64_t value) { return (value + 1) / 2 * 2; }

// As panel.h states it: [panel][depth / 2][16 columns][2].
void ExpectPanels(const std::vector<BFloat16>& panels, int64_t depth, int64_t padded_depth,
                  int64_t columns) {
  ASSERT_EQ(static_cast<int64_t>(panels.size()), NumPanels(columns) * padded_depth * 16);
  for (int64_t n = 0; n < NumPanels(columns) * 16; ++n) {
    for (int64_t k = 0; k < padded_depth; ++k) {
      const BFloat16 expected = k < depth && n < columns ? ValueAt(k, n) : BFloat16{0};
      const int64_t at = n / 16 * padded_depth * 16 + (k / 2 * 16 + n % 16) * 2 + k % 2;
      ASSERT_EQ(panels[at], expected) << "depth " << k << ", column " << n;
    }
  }
}

TEST(PanelTest, PacksColumnsAndPadsWithZeros) {
  for (int64_t depth : {1, 2, 7, 8, 16, 33, 64, 75}) {
    for (int64_t columns : {1, 3, 4, 15, 16}) {
      std::vector<std::vector<BFloat16>> source(columns, std::vector<BFloat16>(depth));
      std::vector<const BFloat16*> pointers;
      for (int64_t n = 0; n < columns; ++n) {
        for (int64_t k = 0; k < depth; ++k) source[n][k] = ValueAt(k, n);
        pointers.push_back(source[n].data());
      }
      for (int64_t padded_depth : {RoundUpToEven(depth), RoundUpToEven(depth) + 6}) {
        std::vector<BFloat16> panel(padded_depth * 16, 0xffff);
        PackColumns(pointers, depth, padded_depth, panel.data());
        ExpectPanels(panel, depth, padded_depth, columns);
      }
    }
  }
}

TEST(PanelTest, PacksRowsAndPadsWithZeros) {
  for (int64_t depth : {0, 1, 2, 5, 64}) {
    for (int64_t columns : {1, 16, 20, 48}) {
      std::vector<std::vector<BFloat16>> source(depth, std::vector<BFloat16>(columns));
      std::vector<const BFloat16*> pointers;
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t n = 0; n < columns; ++n) source[k][n] = ValueAt(k, n);
        pointers.push_back(source[k].data());
      }
      for (int64_t padded_depth : {RoundUpToEven(depth), RoundUpToEven(depth) + 4}) {
        std::vector<BFloat16> panels(NumPanels(columns) * padded_depth * 16, 0xffff);
        PackRows(pointers, columns, padded_depth, panels.data());
        ExpectPanels(panels, depth, padded_depth, columns);
      }
    }
  }
}

}  // namespace
}  // namespace moed::backend
