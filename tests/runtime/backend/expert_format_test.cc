#include "runtime/backend/expert_format.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::backend {
namespace {

using testing::Each;
using testing::ElementsAre;

Tensor Matrix(std::vector<uint16_t>& values, DType dtype, int64_t rows, int64_t columns) {
  return Tensor(values.data(), dtype, {rows, columns});
}

std::vector<uint16_t> Encode(const ExpertFormat& format, const Tensor& gate, const Tensor& up,
                             const Tensor& down) {
  std::vector<uint16_t> blob(format.blob_bytes() / sizeof(uint16_t), 0xaaaa);
  format.Encode(gate, up, down, std::as_writable_bytes(std::span(blob)));
  return blob;
}

TEST(ExpertFormatTest, StoresGateUpAndDownOfANeuronSideBySide) {
  const ExpertFormat format(ExpertFormatKind::kBF16, /*hidden=*/3, /*intermediate=*/2);
  std::vector<uint16_t> gate = {1, 2, 3, 4, 5, 6};
  std::vector<uint16_t> up = {11, 12, 13, 14, 15, 16};
  std::vector<uint16_t> down = {21, 22, 23, 24, 25, 26};  // [H, I]
  const std::vector<uint16_t> blob =
      Encode(format, Matrix(gate, DType::kBF16, 2, 3), Matrix(up, DType::kBF16, 2, 3),
             Matrix(down, DType::kBF16, 3, 2));
  const auto row = [&](int64_t i, int part) {
    const auto* first = blob.data() + i * format.neuron_bytes() / 2 + part * format.row_values();
    return std::vector<uint16_t>(first, first + 4);
  };
  EXPECT_THAT(row(0, 0), ElementsAre(1, 2, 3, 0));
  EXPECT_THAT(row(0, 1), ElementsAre(11, 12, 13, 0));
  EXPECT_THAT(row(0, 2), ElementsAre(21, 23, 25, 0));
  EXPECT_THAT(row(1, 0), ElementsAre(4, 5, 6, 0));
  EXPECT_THAT(row(1, 1), ElementsAre(14, 15, 16, 0));
  EXPECT_THAT(row(1, 2), ElementsAre(22, 24, 26, 0));
}

TEST(ExpertFormatTest, SizesAreExactWhereRowsAreWholeCacheLines) {
  const ExpertFormat format(ExpertFormatKind::kBF16, 2048, 768);
  EXPECT_EQ(format.row_values(), 2048);
  EXPECT_EQ(format.neuron_bytes(), 3 * 2048 * 2);
  EXPECT_EQ(format.blob_bytes(), 768 * 3 * 2048 * 2);
}

TEST(ExpertFormatTest, PadsRowsToCacheLinesAndBlobsTo256Bytes) {
  const ExpertFormat format(ExpertFormatKind::kBF16, 40, 5);
  EXPECT_EQ(format.row_values(), 64);
  EXPECT_EQ(format.neuron_bytes(), 3 * 64 * 2);
  EXPECT_EQ(format.blob_bytes(), 2048);  // 1920 rounded up
}

// Widths on both sides of the transpose's blocks of 8 and 32.
TEST(ExpertFormatTest, EveryShapeKeepsEveryValueAndZeroesThePadding) {
  for (const int64_t hidden : {1, 7, 8, 31, 32, 33, 72, 128}) {
    for (const int64_t intermediate : {1, 7, 8, 9, 32, 45, 64}) {
      SCOPED_TRACE(testing::Message() << "H " << hidden << ", I " << intermediate);
      const ExpertFormat format(ExpertFormatKind::kBF16, hidden, intermediate);
      const int64_t count = hidden * intermediate;
      std::vector<uint16_t> gate(count), up(count), down(count);
      for (int64_t i = 0; i < count; ++i) {
        gate[i] = static_cast<uint16_t>(i);
        up[i] = static_cast<uint16_t>(20000 + i);
        down[i] = static_cast<uint16_t>(40000 + i);
      }
      std::vector<uint16_t> blob = Encode(format, Matrix(gate, DType::kBF16, intermediate, hidden),
                                          Matrix(up, DType::kBF16, intermediate, hidden),
                                          Matrix(down, DType::kBF16, hidden, intermediate));
      for (int64_t i = 0; i < intermediate; ++i) {
        for (int64_t h = 0; h < hidden; ++h) {
          uint16_t* value = blob.data() + i * 3 * format.row_values() + h;
          ASSERT_EQ(value[0], gate[i * hidden + h]);
          ASSERT_EQ(value[format.row_values()], up[i * hidden + h]);
          ASSERT_EQ(value[2 * format.row_values()], down[h * intermediate + i]);
          value[0] = value[format.row_values()] = value[2 * format.row_values()] = 0;
        }
      }
      EXPECT_THAT(blob, Each(0));
    }
  }
}

TEST(ExpertFormatTest, PiecesInAnyOrderMakeTheWhole) {
  constexpr int64_t kHidden = 72, kIntermediate = 45;
  const ExpertFormat format(ExpertFormatKind::kBF16, kHidden, kIntermediate);
  std::vector<uint16_t> values(3 * kHidden * kIntermediate);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(i);
  const Tensor gate(values.data(), DType::kBF16, {kIntermediate, kHidden});
  const Tensor up(gate.As<uint16_t>() + kHidden * kIntermediate, DType::kBF16,
                  {kIntermediate, kHidden});
  const Tensor down(up.As<uint16_t>() + kHidden * kIntermediate, DType::kBF16,
                    {kHidden, kIntermediate});
  std::vector<uint16_t> blob(format.blob_bytes() / sizeof(uint16_t), 0xaaaa);
  const auto bytes = std::as_writable_bytes(std::span(blob));
  format.EncodeRows(ExpertPart::kDown, 64, down.Rows(64, 8), bytes);
  format.EncodeRows(ExpertPart::kDown, 0, down.Rows(0, 32), bytes);
  format.EncodeRows(ExpertPart::kDown, 32, down.Rows(32, 32), bytes);
  format.EncodeRows(ExpertPart::kUp, 0, up, bytes);
  format.EncodeRows(ExpertPart::kGate, 7, gate.Rows(7, kIntermediate - 7), bytes);
  format.EncodeRows(ExpertPart::kGate, 0, gate.Rows(0, 7), bytes);
  EXPECT_EQ(blob, Encode(format, gate, up, down));
}

// Values repeated to a width that fills vectors and leaves a tail.
constexpr int64_t kWide = 67;

template <typename T>
std::vector<T> Repeated(const std::vector<T>& values) {
  std::vector<T> repeated(kWide);
  for (int64_t i = 0; i < kWide; ++i) repeated[i] = values[i % values.size()];
  return repeated;
}

void ExpectRowsAre(const std::vector<uint16_t>& expected, const ExpertFormat& format,
                   const std::vector<uint16_t>& blob) {
  for (int part = 0; part < 3; ++part) {
    const auto* first = blob.data() + part * format.row_values();
    EXPECT_EQ(std::vector<uint16_t>(first, first + kWide), Repeated(expected));
  }
}

TEST(ExpertFormatTest, RoundsFloatsToNearestEven) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> floats = Repeated<float>(
      {1.0f, 1.00390625f, 1.01171875f, -3.0e38f, nan, -0.0f, 1e-40f, infinity, 0.1f, 3.4e38f});
  const ExpertFormat format(ExpertFormatKind::kBF16, kWide, 1);
  const Tensor row(floats.data(), DType::kF32, {1, kWide});
  const Tensor column(floats.data(), DType::kF32, {kWide, 1});
  ExpectRowsAre({0x3f80, 0x3f80, 0x3f82, 0xff62, 0x7fc0, 0x8000, 0x0001, 0x7f80, 0x3dcd, 0x7f80},
                format, Encode(format, row, row, column));
}

TEST(ExpertFormatTest, ReadsHalvesExactlyBeforeRounding) {
  // 1, -2, the smallest subnormal 2^-24, infinity, 65504, -0.
  std::vector<uint16_t> halves =
      Repeated<uint16_t>({0x3c00, 0xc000, 0x0001, 0x7c00, 0x7bff, 0x8000});
  const ExpertFormat format(ExpertFormatKind::kBF16, kWide, 1);
  const Tensor row = Matrix(halves, DType::kF16, 1, kWide);
  ExpectRowsAre({0x3f80, 0xc000, 0x3380, 0x7f80, 0x4780, 0x8000}, format,
                Encode(format, row, row, Matrix(halves, DType::kF16, kWide, 1)));
}

TEST(ExpertFormatTest, HalfNaNStaysNaN) {
  EXPECT_TRUE(std::isnan(HalfToFloat(0x7e00)));
  EXPECT_TRUE(std::isnan(HalfToFloat(0xfc01)));
}

}  // namespace
}  // namespace moed::backend
