#include "runtime/model/bf12_survey.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::model {
namespace {

using ::testing::HasSubstr;

const backend::ExpertFormat kPlain(backend::ExpertFormatKind::kBF16, 2048, 768);
constexpr int64_t kTiles = 768 / 32;

Bf12Survey Survey(int64_t most_in_tile, int64_t total) {
  Bf12Survey survey;
  survey.Add({3, 7}, {.most_in_tile = 4, .total = 20});
  survey.Add({2, 9}, {.most_in_tile = most_in_tile, .total = total - 20});
  return survey;
}

TEST(Bf12SurveyTest, KeepsTheWildestExpertTheFirstOfSeveral) {
  Bf12Survey survey = Survey(50, 100);
  survey.Add({2, 8}, {.most_in_tile = 50, .total = 60});
  survey.Add({0, 0}, {.most_in_tile = 49, .total = 49});
  EXPECT_EQ(survey.num_experts, 4);
  EXPECT_EQ(survey.listed_escapes, 209);
  EXPECT_EQ(survey.most_in_tile, 50);
  EXPECT_EQ(survey.wildest, (cache::ExpertKey{2, 8}));
}

TEST(Bf12SurveyTest, ExactRoomIsForTheFullestTileAndSpareRoomForLittleMore) {
  const Bf12Survey survey = Survey(4000, 4100);
  EXPECT_EQ(Bf12WithExactRoom(kPlain, survey)->tile_escapes(), 4015);
  EXPECT_EQ(Bf12WithRoomToSpare(kPlain, survey).tile_escapes(), 4127);
}

TEST(Bf12SurveyTest, AnExpertThatNoListHoldsIsNamed) {
  const absl::Status status = Bf12WithExactRoom(kPlain, Survey(65536, 70000)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(status.ToString(), HasSubstr("expert 9 of layer 2"));
}

// One wild expert: all others take its room, as long as the whole stays worth it.
TEST(Bf12SurveyTest, RoomForAWildExpertIsWeighedAgainstWhatBf12Saves) {
  for (const auto& [listed, pays] : {std::pair{4000, true}, {5500, false}}) {
    const Bf12Survey survey = Survey(listed, listed + 100);
    const std::string why = WhyBf12DoesNotPay(*Bf12WithExactRoom(kPlain, survey), survey);
    EXPECT_EQ(why.empty(), pays) << why;
    EXPECT_THAT(why, HasSubstr(pays ? "" : "expert 9 of layer 2 lists 5500 escapes"));
  }
}

TEST(Bf12SurveyTest, ManyEscapesEverywhereDoNotPayWhateverTheirRoom) {
  const int64_t weights = 2 * 3 * 2048 * 768;
  for (const auto& [total, pays] : {std::pair{weights / 1000, true}, {weights / 900, false}}) {
    const Bf12Survey survey = Survey(total / (2 * kTiles), total);
    const std::string why = WhyBf12DoesNotPay(*Bf12WithExactRoom(kPlain, survey), survey);
    EXPECT_EQ(why.empty(), pays) << why;
  }
}

}  // namespace
}  // namespace moed::model
