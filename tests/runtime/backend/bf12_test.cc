#include "runtime/backend/bf12.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/backend/cpu/bf12_blocks.h"
#include "tests/runtime/backend/bf16_expert.h"
#include "tests/runtime/backend/cpu/cpu_target_test.h"

namespace moed::backend {
namespace {

using testing::HasSubstr;

void ExpectDecodesTo(const Bf16Expert& expert, const ExpertFormat& format,
                     const std::vector<std::byte>& blob) {
  const int64_t width = format.row_values();
  std::vector<BFloat16> row(width);
  for (int64_t i = 0; i < format.intermediate(); ++i) {
    for (int part = 0; part < 3; ++part) {
      DecodeBf12(format, blob.data(), static_cast<ExpertPart>(part), i, 1, 0, width, row.data(),
                 width);
      ASSERT_EQ(std::memcmp(row.data(), expert.Row(i, part), format.hidden() * 2), 0)
          << "neuron " << i << ", part " << part;
    }
  }
}

void ExpectRoundTrip(const Bf16Expert& expert) {
  const Bf12ListedEscapes listed = MeasureBf12Escapes(expert.format, expert.blob());
  const ExpertFormat format =
      Bf12Format(expert.format, Bf12ExactTileEscapeCapacity(listed.most_in_tile));
  const std::vector<std::byte> blob = EncodeOrDie(expert, format);
  EXPECT_EQ(CountBf12Escapes(format, blob).most_in_tile, listed.most_in_tile);
  EXPECT_EQ(CountBf12Escapes(format, blob).total, listed.total);
  EXPECT_TRUE(ValidateBf12(format, blob).ok());
  ExpectDecodesTo(expert, format, blob);
}

class Bf12Test : public CpuTargetTest {};
MOED_INSTANTIATE_CPU_TARGETS(Bf12Test);

// Each pattern once, in rows where all but a few exponents are escapes or are not.
TEST_P(Bf12Test, EveryPatternSurvivesInARowOfItsOwnExponents) {
  // 16 exponents of both signs, all mantissas: rows of 4096 patterns, 16 rows.
  const auto pattern = [](int64_t i) {
    const int64_t exponent = i / 4096 * 16 + i / 256 % 16;
    return static_cast<BFloat16>(exponent << 7 | (i & 0x80) << 8 | (i & 0x7f));
  };
  const Bf16Expert expert(4096, 6, [&](int64_t i) { return pattern(i % 65536); });
  EXPECT_EQ(MeasureBf12Escapes(expert.format, expert.blob()).total, 0);
  ExpectRoundTrip(expert);
}

TEST_P(Bf12Test, EveryPatternSurvivesAsAnEscape) {
  // Four patterns a row, among ones: 384 in the 96 rows of a tile.
  for (int64_t first = 0; first < 65536; first += 384) {
    const Bf16Expert expert(128, 32, [&](int64_t i) {
      const int64_t row = i / 128;
      const int64_t column = i % 128;
      const bool special = column % 32 == 7;
      return special ? static_cast<BFloat16>(first + row * 4 + column / 32) : BFloat16{0x3f80};
    });
    const ExpertFormat format = Bf12Format(expert.format, 239);
    const std::vector<std::byte> blob = EncodeOrDie(expert, format);
    ASSERT_TRUE(ValidateBf12(format, blob).ok());
    ExpectDecodesTo(expert, format, blob);
    if (HasFailure()) return;
  }
}

struct Distribution {
  std::string name;
  std::function<float(std::mt19937&)> draw;
};

std::vector<Distribution> Distributions() {
  return {
      {"normal", [](std::mt19937& r) { return std::normal_distribution<float>(0, 0.02f)(r); }},
      {"Laplace",
       [](std::mt19937& r) {
         const float sign = r() % 2 == 0 ? 1.0f : -1.0f;
         return sign * std::exponential_distribution<float>(50.0f)(r);
       }},
      {"Student t",
       [](std::mt19937& r) { return 0.02f * std::student_t_distribution<float>(3.0f)(r); }},
      {"zeros", [](std::mt19937&) { return 0.0f; }},
      {"constant", [](std::mt19937&) { return -0.125f; }},
      {"subnormal", [](std::mt19937& r) { return 1e-41f * static_cast<float>(r() % 1000); }},
      {"outliers",
       [](std::mt19937& r) {
         const float scale = r() % 700 == 0 ? 1e6f : 0.02f;
         return std::normal_distribution<float>(0, scale)(r);
       }},
      {"wild",  // every eighth, which is more than a header counts
       [](std::mt19937& r) {
         return std::exp2(r() % 8 == 0 ? static_cast<float>(r() % 200) - 100.0f : 1.0f);
       }},
  };
}

TEST_P(Bf12Test, RowsOfEveryKindAndWidthSurvive) {
  for (const Distribution& distribution : Distributions()) {
    for (const auto& [hidden, intermediate] :
         {std::pair<int64_t, int64_t>{64, 5}, {2880, 33}, {128, 32}, {257, 64}}) {
      SCOPED_TRACE(testing::Message() << distribution.name << ", H " << hidden);
      std::mt19937 random(1);
      ExpectRoundTrip(Bf16Expert(hidden, intermediate,
                                 [&](int64_t) { return ToBFloat16(distribution.draw(random)); }));
    }
  }
}

TEST_P(Bf12Test, DecodesABlockOfColumns) {
  std::mt19937 random(2);
  const Bf16Expert expert(640, 40, [&](int64_t) {
    return ToBFloat16(random() % 200 == 0 ? 1e9f
                                          : std::normal_distribution<float>(0, 0.1f)(random));
  });
  const ExpertFormat format = Bf12Format(expert.format, 239);
  const std::vector<std::byte> blob = EncodeOrDie(expert, format);
  std::vector<BFloat16> block(10 * 300, 0x1234);
  DecodeBf12(format, blob.data(), ExpertPart::kUp, 29, 10, 128, 256, block.data(), 300);
  for (int64_t i = 0; i < 10; ++i) {
    EXPECT_EQ(std::memcmp(&block[i * 300], expert.Row(29 + i, 1) + 128, 256 * 2), 0) << i;
    EXPECT_EQ(block[i * 300 + 256], 0x1234) << "wrote beyond the columns";
  }
}

TEST(Bf12FormatTest, TakesThreeQuartersOfTheBytesAndKeepsLinkTilesAligned) {
  const ExpertFormat format(ExpertFormatKind::kBF12, 2048, 768, Bf12TileEscapeCapacity(0));
  EXPECT_EQ(format.neuron_bytes(), 32 + 3 * 3072);
  EXPECT_EQ(format.neuron_offset(32), 32 * 9248 + 128);
  EXPECT_EQ(format.blob_bytes() % 256, 0);
  EXPECT_NEAR(static_cast<double>(format.blob_bytes()) / (768 * 3 * 2048 * 2), 0.753, 0.0005);
  for (int64_t i = 0; i < 768; i += 4) ASSERT_EQ(format.neuron_offset(i) % 128, 0) << i;
}

TEST(Bf12FormatTest, FillsTheLastTileUp) {
  const ExpertFormat format(ExpertFormatKind::kBF12, 64, 33, 15);
  EXPECT_EQ(format.row_values(), 128);
  EXPECT_EQ(format.neuron_bytes(), 32 + 3 * 192);
  EXPECT_EQ(format.blob_bytes(), 39168);  // 2 * (32 * 608 + 128), a multiple of 256
}

TEST(Bf12FormatTest, CapacityIsTwiceTheSampleOrALittleMoreInWholeCacheLines) {
  EXPECT_EQ(Bf12TileEscapeCapacity(0), 15);
  EXPECT_EQ(Bf12TileEscapeCapacity(7), 15);
  EXPECT_EQ(Bf12TileEscapeCapacity(8), 31);
  EXPECT_EQ(Bf12TileEscapeCapacity(20), 47);
  EXPECT_EQ(Bf12TileEscapeCapacity(1000), 1135);
  EXPECT_EQ(Bf12TileEscapeCapacity(100000), 65535);
}

TEST(Bf12FormatTest, ExactCapacityIsTheLeastInWholeCacheLines) {
  EXPECT_EQ(Bf12ExactTileEscapeCapacity(0), 15);
  EXPECT_EQ(Bf12ExactTileEscapeCapacity(15), 15);
  EXPECT_EQ(Bf12ExactTileEscapeCapacity(16), 31);
  EXPECT_EQ(Bf12ExactTileEscapeCapacity(65535), 65535);
  EXPECT_EQ(Bf12ExactTileEscapeCapacity(65536), -1);
}

TEST(Bf12FormatTest, SupportsRowsWhosePositionsFit16Bits) {
  EXPECT_TRUE(Bf12Supports(7168));
  EXPECT_TRUE(Bf12Supports(21760));
  EXPECT_FALSE(Bf12Supports(21761));
}

// Also those that fill the last tile, its list and the blob up: files carry checksums of all.
TEST(Bf12FormatTest, EveryByteOfABlobIsWritten) {
  for (const int64_t intermediate : {32, 33, 63}) {
    std::mt19937 random(1);
    const Bf16Expert expert(64, intermediate, [&](int64_t) {
      return ToBFloat16(std::student_t_distribution<float>(1.0f)(random));
    });
    const ExpertFormat format = Bf12Format(expert.format, 239);
    std::vector<std::byte> blobs[2];
    for (int i = 0; i < 2; ++i) {
      blobs[i].assign(format.blob_bytes(), static_cast<std::byte>(i * 0xff));
      ASSERT_TRUE(EncodeBf12(expert.format, expert.blob(), format, blobs[i]));
    }
    EXPECT_EQ(blobs[0], blobs[1]) << intermediate << " neurons";
  }
}

TEST(Bf12FormatTest, RefusesAnExpertBeyondItsCapacity) {
  const Bf16Expert expert = ExpertWithEscapes(32);
  EXPECT_EQ(MeasureBf12Escapes(expert.format, expert.blob()).most_in_tile, 64);
  for (const int capacity : {63, 64}) {
    const ExpertFormat format = Bf12Format(expert.format, capacity);
    std::vector<std::byte> blob(format.blob_bytes());
    EXPECT_EQ(EncodeBf12(expert.format, expert.blob(), format, blob), capacity == 64);
  }
}

TEST(Bf12FormatTest, ANeuronMayHaveMoreEscapesThanItsHeaderCounts) {
  const Bf16Expert expert = ExpertWithAWildNeuron();
  const Bf12ListedEscapes listed = MeasureBf12Escapes(expert.format, expert.blob());
  EXPECT_EQ(listed.total, 323 + 31 * 8);
  EXPECT_EQ(listed.most_in_tile, listed.total);
  const ExpertFormat format = Bf12Format(expert.format, 575);
  std::vector<std::byte> blob = EncodeOrDie(expert, format);
  auto& header = *reinterpret_cast<Bf12Header*>(blob.data() + format.neuron_offset(5));
  EXPECT_EQ(header.num_escapes, kBf12ManyEscapes);
  EXPECT_TRUE(ValidateBf12(format, blob).ok());
  ExpectDecodesTo(expert, format, blob);
  header.num_escapes = 254;
  EXPECT_THAT(ValidateBf12(format, blob).message(), HasSubstr("254 escapes, but 330 listed"));
}

}  // namespace
}  // namespace moed::backend
