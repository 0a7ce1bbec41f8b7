#include "runtime/model/encoded_expert_source.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/backend/bf12.h"
#include "runtime/model/for_each_expert.h"
#include "runtime/model/tensor_checksums.h"
#include "tests/golden/golden_case.h"
#include "tests/runtime/model/checkpoint_files.h"
#include "tests/runtime/model/converted_checkpoint.h"

namespace moed::model {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr char kFirstLayer[] = "model-experts-00000.safetensors";

void Overwrite(const fs::path& file, const std::string& bytes) {
  std::ofstream(file, std::ios::binary | std::ios::trunc) << bytes;
}

// Everything that serving reads of a checkpoint, or the first error.
absl::StatusOr<std::string> ReadAll(const std::string& directory) {
  const auto checkpoint = OpenCheckpoint({.directory = directory});
  if (!checkpoint.ok()) return checkpoint.status();
  std::string all;
  for (int layer = 0; layer < (*checkpoint)->config().num_layers(); ++layer) {
    for (int role = 0; role < kNumDenseRoles; ++role) {
      if (!(*checkpoint)->Has(static_cast<DenseRole>(role), layer)) continue;
      const auto tensor = (*checkpoint)->ReadDense(static_cast<DenseRole>(role), layer);
      if (!tensor.ok()) return tensor.status();
      all.append(reinterpret_cast<const char*>(tensor->buffer.data()),
                 static_cast<size_t>(tensor->view.num_bytes()));
    }
  }
  const ExpertSource& experts = (*checkpoint)->experts();
  std::vector<std::byte> blob(experts.format().blob_bytes());
  for (cache::ExpertKey key : AllExperts((*checkpoint)->config())) {
    if (absl::Status status = experts.Read(key, {}, blob); !status.ok()) return status;
    all.append(reinterpret_cast<const char*>(blob.data()), blob.size());
  }
  return all;
}

class EncodedExpertSourceTest : public ::testing::Test {
 protected:
  EncodedExpertSourceTest()
      : converted_(moed::testing::LoadGoldenCase("qwen3_moe")->checkpoint_directory) {}

  // The first place of `from` in the first layer's file becomes `to`, of the same length.
  void Replace(const std::string& from, const std::string& to) {
    std::string bytes = ReadText(converted_.file(kFirstLayer));
    const size_t at = bytes.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    ASSERT_EQ(from.size(), to.size());
    Overwrite(converted_.file(kFirstLayer), bytes.replace(at, to.size(), to));
  }

  // Changes expert 1's first tile in the first layer's file and, if told, makes its checksum right.
  void Damage(const std::function<void(std::byte* blob)>& damage, bool fix_checksum) {
    std::string bytes = ReadText(converted_.file(kFirstLayer));
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
    const backend::ExpertFormat& format = converted_.result().format;
    const std::span<std::byte> tile(
        reinterpret_cast<std::byte*>(bytes.data()) + 8 + header_bytes + format.blob_bytes(),
        backend::Bf12TileOffset(format, 1));
    const uint32_t before = Checksum(tile);
    damage(tile.data());
    if (fix_checksum) {
      const uint32_t after = Checksum(tile);
      const std::string old_text = ChecksumText(std::span(&before, 1));
      bytes.replace(bytes.find(old_text), old_text.size(), ChecksumText(std::span(&after, 1)));
    }
    Overwrite(converted_.file(kFirstLayer), bytes);
  }

  absl::Status Status() { return ReadAll(converted_.directory()).status(); }

  void ExpectRefused(absl::StatusCode code, const std::string& why) {
    const absl::Status status = Status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(kFirstLayer), HasSubstr(why)));
  }

  ConvertedCheckpoint converted_;
};

TEST_F(EncodedExpertSourceTest, AnotherVersionIsRefusedByName) {
  Replace(R"("moed.version":"1")", R"("moed.version":"2")");
  ExpectRefused(absl::StatusCode::kInvalidArgument, "version \"2\"");
}

TEST_F(EncodedExpertSourceTest, AnotherFormatIsRefusedByName) {
  Replace(R"("moed.expert_format":"bf12")", R"("moed.expert_format":"bf11")");
  ExpectRefused(absl::StatusCode::kInvalidArgument, "bf11");
}

TEST_F(EncodedExpertSourceTest, RoomForEscapesThatNoFileHasIsRefused) {
  for (const char* room : {"16", "-1", "x5", "1e", "00"}) {
    Replace(R"(tile_escapes":"15")", absl::StrCat(R"(tile_escapes":")", room, "\""));
    ExpectRefused(absl::StatusCode::kInvalidArgument, "escapes");
    Replace(absl::StrCat(R"(tile_escapes":")", room, "\""), R"(tile_escapes":"15")");
  }
  // Legal, but then blobs have another size.
  Replace(R"(tile_escapes":"15")", R"(tile_escapes":"63")");
  ExpectRefused(absl::StatusCode::kInvalidArgument, "config.json implies");
}

TEST_F(EncodedExpertSourceTest, ChecksumsThatAreNoNumbersAreRefused) {
  Replace("moed.crc32.moed.layers", "moed.crc33.moed.layers");
  ExpectRefused(absl::StatusCode::kDataLoss, "checksums");
}

TEST_F(EncodedExpertSourceTest, ADamagedBlobIsRefusedByExpert) {
  Damage([](std::byte* blob) { blob[100] ^= std::byte{1}; }, /*fix_checksum=*/false);
  ExpectRefused(absl::StatusCode::kDataLoss, "expert 1 of layer 0: its bytes are not those");
}

// Who can write a checksum must still not make a kernel read elsewhere.
TEST_F(EncodedExpertSourceTest, EscapesBasesAndCountsAreCheckedBehindARightChecksum) {
  const std::string good = ReadText(converted_.file(kFirstLayer));
  const struct {
    const char* why;
    std::function<void(backend::Bf12Header&)> damage;
  } cases[] = {
      {"base 241", [](backend::Bf12Header& header) { header.bases[2] = 241; }},
      {"255 escapes, but",
       [](backend::Bf12Header& header) {
         header.num_escapes = 255;
         for (uint16_t i = 0; i < backend::kBf12HeaderEscapes; ++i) header.escapes[i].position = i;
       }},
      {"escape at position",
       [](backend::Bf12Header& header) {
         header.num_escapes = std::max<uint8_t>(header.num_escapes, 1);
         header.escapes[0].position = 65535;
       }},
      {"out of order",
       [](backend::Bf12Header& header) {
         header.num_escapes = std::max<uint8_t>(header.num_escapes, 2);
         header.escapes[0].position = 5;
         header.escapes[1].position = 5;
       }},
  };
  for (const auto& [why, damage] : cases) {
    Damage(
        [&damage = damage](std::byte* blob) {
          backend::Bf12Header header;
          std::memcpy(&header, blob, sizeof(header));
          damage(header);
          std::memcpy(blob, &header, sizeof(header));
        },
        /*fix_checksum=*/true);
    ExpectRefused(absl::StatusCode::kDataLoss, "expert 1 of layer 0");
    EXPECT_THAT(std::string(Status().message()), HasSubstr(why));
    Overwrite(converted_.file(kFirstLayer), good);
  }
  EXPECT_TRUE(Status().ok());
}

TEST_F(EncodedExpertSourceTest, StructureIsCheckedAtEveryReadNotOnlyTheFirst) {
  const auto checkpoint = OpenGood(converted_.directory());
  std::vector<std::byte> blob(checkpoint->experts().format().blob_bytes());
  ASSERT_TRUE(checkpoint->experts().Read({.layer = 0, .expert = 1}, {}, blob).ok());
  std::fstream file(converted_.file(kFirstLayer), std::ios::binary | std::ios::in | std::ios::out);
  uint64_t header_bytes = 0;
  file.read(reinterpret_cast<char*>(&header_bytes), sizeof(header_bytes));
  file.seekp(static_cast<std::streamoff>(8 + header_bytes + blob.size()));
  file << "\xff\xff\xff\xff";
  file.close();
  const absl::Status status = checkpoint->experts().Read({.layer = 0, .expert = 1}, {}, blob);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_TRUE(checkpoint->experts().Read({.layer = 0, .expert = 0}, {}, blob).ok());
}

TEST_F(EncodedExpertSourceTest, SharesTogetherAreTheExpert) {
  const auto checkpoint = OpenGood(converted_.directory());
  const ExpertSource& experts = checkpoint->experts();
  std::vector<std::byte> whole(experts.format().blob_bytes());
  ASSERT_TRUE(experts.Read({.layer = 1, .expert = 2}, {}, whole).ok());
  for (int count : {1, 2, 3, 7}) {
    std::vector<std::byte> blob(whole.size(), std::byte{0x5a});
    for (int i = count - 1; i >= 0; --i) {
      ASSERT_TRUE(experts.Read({.layer = 1, .expert = 2}, {i, count}, blob).ok());
    }
    EXPECT_EQ(blob, whole) << count;
  }
}

TEST_F(EncodedExpertSourceTest, ExpertsThatDoNotExistAreRefused) {
  const auto checkpoint = OpenGood(converted_.directory());
  std::vector<std::byte> blob(checkpoint->experts().format().blob_bytes());
  for (const cache::ExpertKey key : {cache::ExpertKey{-1, 0}, {0, -1}, {0, 4096}, {4096, 0}}) {
    EXPECT_EQ(checkpoint->experts().Read(key, {}, blob).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(EncodedExpertSourceTest, EveryTruncationIsRefused) {
  for (const std::string& name :
       {std::string(kFirstLayer), std::string("model-dense.safetensors")}) {
    const std::string good = ReadText(converted_.file(name));
    for (size_t bytes = 0; bytes < good.size(); bytes += 1 + good.size() / 50) {
      fs::resize_file(converted_.file(name), bytes);
      EXPECT_EQ(Status().code(), absl::StatusCode::kDataLoss) << name << " of " << bytes;
    }
    Overwrite(converted_.file(name), good);
  }
  ASSERT_TRUE(fs::remove(converted_.file(kFirstLayer)));
  EXPECT_EQ(Status().code(), absl::StatusCode::kNotFound);
}

// Whatever bytes of its files change: an error, or the same weights.
TEST_F(EncodedExpertSourceTest, NoDamageGoesUnseen) {
  const absl::StatusOr<std::string> expected = ReadAll(converted_.directory());
  ASSERT_TRUE(expected.ok()) << expected.status();
  std::mt19937 random(5);
  int refused = 0;
  constexpr int kRounds = 400;
  for (int round = 0; round < kRounds; ++round) {
    const std::string name = round % 4 == 3    ? "model-dense.safetensors"
                             : round % 16 == 2 ? "model.safetensors.index.json"
                                               : kFirstLayer;
    const std::string good = ReadText(converted_.file(name));
    std::string bad = good;
    // Half of the damage hits the header.
    const size_t range = round % 2 == 0 ? std::min<size_t>(bad.size(), 700) : bad.size();
    for (uint32_t i = 0; i <= random() % 3; ++i) {
      bad[random() % range] = static_cast<char>(random());
    }
    Overwrite(converted_.file(name), bad);
    const absl::StatusOr<std::string> read = ReadAll(converted_.directory());
    if (read.ok()) {
      EXPECT_EQ(*read, *expected) << name << " in round " << round;
    } else {
      ++refused;
      EXPECT_THAT(read.status().code(),
                  AnyOf(absl::StatusCode::kDataLoss, absl::StatusCode::kInvalidArgument,
                        absl::StatusCode::kNotFound))
          << read.status();
    }
    Overwrite(converted_.file(name), good);
  }
  EXPECT_GT(refused, kRounds / 2);
}

}  // namespace
}  // namespace moed::model
