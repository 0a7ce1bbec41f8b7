#include "runtime/model/expert_pieces.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace moed::model {
namespace {

using backend::DType;
using backend::ExpertPart;
using backend::Tensor;

struct Case {
  int64_t hidden;
  int64_t intermediate;
  DType dtype;
};

class ExpertPiecesTest : public ::testing::TestWithParam<Case> {};

// A few pieces a part, one short piece, rows that are no multiple of a cache line.
INSTANTIATE_TEST_SUITE_P(Shapes, ExpertPiecesTest,
                         ::testing::Values(Case{2048, 300, DType::kBF16},
                                           Case{2048, 300, DType::kF32}, Case{64, 8, DType::kBF16},
                                           Case{1000, 600, DType::kF16}));

TEST_P(ExpertPiecesTest, SharesTogetherMakeWhatOneReadMakes) {
  const auto [hidden, intermediate, dtype] = GetParam();
  const backend::ExpertFormat format(backend::ExpertFormatKind::kBF16, hidden, intermediate);
  const size_t value_bytes = backend::SizeOf(dtype);
  Reread reread = Reread::kLikely;
  std::vector<std::byte> parts[3];
  std::mt19937 random(1);
  for (auto& part : parts) {
    part.resize(hidden * intermediate * value_bytes);
    // Exponents of finite numbers, so that converting f32 to bf16 is defined by value.
    for (std::byte& byte : part) byte = static_cast<std::byte>(random() % 0x3f);
  }
  // Places within a block of a file; a value of the last never lies where it could be used.
  const StoredParts stored = {{{dtype, 4096 + 200}, {dtype, 8}, {dtype, 8191}}};
  const auto read = [&](ExpertPart part, int64_t first_row, const Tensor& rows) {
    const size_t row_bytes = rows.dim(1) * value_bytes;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(rows.data()) % value_bytes, 0u);
    if (reread == Reread::kNever && part != ExpertPart::kDown) {
      const uint64_t offset = stored[static_cast<size_t>(part)].file_offset + first_row * row_bytes;
      EXPECT_EQ((reinterpret_cast<uintptr_t>(rows.data()) - offset) % 4096, 0u);
    }
    const auto& source = parts[static_cast<size_t>(part)];
    std::memcpy(rows.As<std::byte>(), source.data() + first_row * row_bytes, rows.num_bytes());
    return absl::OkStatus();
  };
  const auto tensor = [&](ExpertPart part, int64_t rows, int64_t columns) {
    return Tensor(parts[static_cast<size_t>(part)].data(), dtype, {rows, columns});
  };
  std::vector<std::byte> expected(format.blob_bytes());
  format.Encode(tensor(ExpertPart::kGate, intermediate, hidden),
                tensor(ExpertPart::kUp, intermediate, hidden),
                tensor(ExpertPart::kDown, hidden, intermediate), expected);
  for (int count : {1, 2, 3, 7, 64}) {
    for (const Reread each : {Reread::kLikely, Reread::kNever}) {
      reread = each;
      std::vector<std::byte> blob(format.blob_bytes());
      for (int index = count - 1; index >= 0; --index) {
        const ReadShare share = {.index = index, .count = count, .reread = reread};
        ASSERT_TRUE(EncodeInPieces(format, stored, share, read, blob).ok());
      }
      EXPECT_TRUE(blob == expected) << count << " shares";
    }
  }
}

TEST_P(ExpertPiecesTest, SharesReadEveryRowOnce) {
  const auto [hidden, intermediate, dtype] = GetParam();
  const backend::ExpertFormat format(backend::ExpertFormatKind::kBF16, hidden, intermediate);
  std::vector<int> reads[3] = {std::vector<int>(intermediate), std::vector<int>(intermediate),
                               std::vector<int>(hidden)};
  const auto read = [&](ExpertPart part, int64_t first_row, const Tensor& rows) {
    for (int64_t row = 0; row < rows.dim(0); ++row) {
      ++reads[static_cast<size_t>(part)][first_row + row];
    }
    return absl::OkStatus();
  };
  std::vector<std::byte> blob(format.blob_bytes());
  for (int index = 0; index < 5; ++index) {
    ASSERT_TRUE(EncodeInPieces(format, {{{dtype}, {dtype}, {dtype}}}, {index, 5}, read, blob).ok());
  }
  for (const auto& part : reads) EXPECT_EQ(part, std::vector<int>(part.size(), 1));
}

TEST(ExpertPiecesErrorTest, TheFirstErrorEndsAShare) {
  const backend::ExpertFormat format(backend::ExpertFormatKind::kBF16, 64, 8);
  std::vector<std::byte> blob(format.blob_bytes());
  int reads = 0;
  const auto read = [&](ExpertPart, int64_t, const Tensor&) {
    ++reads;
    return absl::DataLossError("bad sector");
  };
  const absl::Status status = EncodeInPieces(format, StoredParts(), {}, read, blob);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(reads, 1);
}

}  // namespace
}  // namespace moed::model
