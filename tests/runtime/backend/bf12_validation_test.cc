#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/backend/bf12.h"
#include "tests/runtime/backend/bf16_expert.h"

namespace moed::backend {
namespace {

using testing::HasSubstr;

// A good blob to be damaged.
class Bf12ValidationTest : public testing::Test {
 protected:
  Bf12ValidationTest()
      : expert_(ExpertWithEscapes(40)),
        format_(Bf12Format(expert_.format, 79)),
        blob_(EncodeOrDie(expert_, format_)) {}

  Bf12Header& header(int64_t neuron) {
    return *reinterpret_cast<Bf12Header*>(blob_.data() + format_.neuron_offset(neuron));
  }
  Bf12TileEscape* list(int tile) {
    return reinterpret_cast<Bf12TileEscape*>(blob_.data() + format_.neuron_offset(32 * tile) +
                                             format_.tile_list_offset());
  }
  void ExpectDataLoss(const std::string& what) {
    const absl::Status status = ValidateBf12(format_, blob_);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(status.message(), HasSubstr(what));
  }

  Bf16Expert expert_;
  ExpertFormat format_;
  std::vector<std::byte> blob_;
};

TEST_F(Bf12ValidationTest, AcceptsWhatWasEncoded) {
  EXPECT_TRUE(ValidateBf12(format_, blob_).ok());
}

TEST_F(Bf12ValidationTest, NamesASizeThatIsNotTheFormats) {
  blob_.pop_back();
  ExpectDataLoss("bytes instead of");
}

TEST_F(Bf12ValidationTest, NamesABaseBeyondTheExponents) {
  header(35).bases[1] = 241;
  ExpectDataLoss("neuron 35: base 241 above 240");
}

TEST_F(Bf12ValidationTest, NamesAPositionBeyondTheRows) {
  header(3).escapes[6].position = 3 * 128;
  ExpectDataLoss("neuron 3: escape at position 384");
}

TEST_F(Bf12ValidationTest, NamesEscapesOutOfOrder) {
  std::swap(header(4).escapes[0], header(4).escapes[1]);
  ExpectDataLoss("neuron 4: escapes out of order");
}

TEST_F(Bf12ValidationTest, NamesACountThatTheListDoesNotHave) {
  header(31).num_escapes = 10;
  ExpectDataLoss("neuron 31: 10 escapes, but 9 listed");
}

TEST_F(Bf12ValidationTest, NamesAListLongerThanItsRoom) {
  list(1)[0].neuron = 80;
  ExpectDataLoss("lists 80 escapes in room for 79");
}

TEST_F(Bf12ValidationTest, NamesListedEscapesOfNoNeuron) {
  header(39).num_escapes = 7;
  ExpectDataLoss("escapes of no neuron");
}

// A blob that passes must not lead a kernel out of bounds (the sanitizers watch).
void ExpectRandomDamageIsRefusedOrHarmless(const Bf16Expert& expert, int capacity) {
  const ExpertFormat format = Bf12Format(expert.format, capacity);
  const std::vector<std::byte> good = EncodeOrDie(expert, format);
  const int64_t hidden = format.hidden();
  const int64_t neurons = format.intermediate();
  std::mt19937 random(3);
  std::vector<BFloat16> row(hidden);
  int accepted = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::byte> blob = good;
    // Most often where it hurts: headers and lists.
    const size_t begin = round % 3 == 0   ? random() % blob.size()
                         : round % 3 == 1 ? format.neuron_offset(random() % neurons) + random() % 32
                                          : format.tile_list_offset() + random() % 640;
    blob[begin] = static_cast<std::byte>(random());
    if (!ValidateBf12(format, blob).ok()) continue;
    ++accepted;
    for (int64_t i = 0; i < neurons; ++i) {
      DecodeBf12(format, blob.data(), ExpertPart::kDown, i, 1, 0, hidden, row.data(), hidden);
    }
  }
  EXPECT_GT(accepted, 300);
  EXPECT_LT(accepted, 2700);
}

TEST_F(Bf12ValidationTest, RandomDamageIsRefusedOrHarmless) {
  ExpectRandomDamageIsRefusedOrHarmless(ExpertWithEscapes(40), 79);
  ExpectRandomDamageIsRefusedOrHarmless(ExpertWithAWildNeuron(), 575);
}

}  // namespace
}  // namespace moed::backend
