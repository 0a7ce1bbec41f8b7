// Guesses at the next layer's cold experts against the router's formula in double precision.
#include "runtime/backend/cpu/cold_forecast.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::backend {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::IsEmpty;

constexpr int kExperts = 40;
constexpr int64_t kHidden = 256;
constexpr int64_t kRowValues = 288;

// Three layers, of which the middle one has no router.
class ColdForecastTest : public testing::Test {
 protected:
  ColdForecastTest() : x_(16 * kRowValues) {
    std::normal_distribution<float> normal;
    auto routers = std::make_shared<NextRouters>(3);
    (*routers)[0].layer = 2;
    for (int64_t i = 0; i < kExperts * kHidden; ++i) {
      (*routers)[0].weights.push_back(ToBFloat16(normal(random_)));
    }
    FillRows();
    routers_ = routers;
    mailbox_.request = &request_;
    mailbox_.x = x_.data();
    mailbox_.row_values = kRowValues;
    mailbox_.hidden = kHidden;
  }

  void FillRows() {
    std::normal_distribution<float> normal;
    for (BFloat16& value : x_) value = ToBFloat16(normal(random_));
  }

  ColdForecast MakeForecast(int top_k) const {
    return ColdForecast(routers_, std::vector<int>{kExperts, 0, kExperts}, top_k, kHidden);
  }

  std::vector<int32_t> Guess(ColdForecast& forecast, int rows) {
    request_ = {.layer = 0, .rows = rows};
    EXPECT_TRUE(forecast.Begin(mailbox_));
    EXPECT_EQ(forecast.layer(), 2);
    std::vector<float> x;
    for (int first = 0; first < kExperts; first += 15) {
      forecast.Score(first, std::min(15, kExperts - first), &x);
    }
    std::vector<int32_t> order;
    std::vector<int32_t> experts;
    forecast.Choose(&order, &experts);
    return experts;
  }

  static void Follow(ColdForecast* forecast, const ExpertEdit& edit) {
    forecast->Follow({&edit, 1});
  }

  // All experts, the likeliest for a row first.
  std::vector<int32_t> RankedExperts(int row) const {
    std::vector<double> logits(kExperts);
    for (int e = 0; e < kExperts; ++e) {
      for (int64_t i = 0; i < kHidden; ++i) {
        logits[e] += double{ToFloat((*routers_)[0].weights[e * kHidden + i])} *
                     ToFloat(x_[row * kRowValues + i]);
      }
    }
    std::vector<int32_t> order(kExperts);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    return order;
  }

  std::mt19937 random_{5};
  std::shared_ptr<const NextRouters> routers_;
  std::vector<BFloat16> x_;
  ColdRequest request_;
  ColdMailbox mailbox_;
};

TEST_F(ColdForecastTest, GuessesTheLikeliestOfATokenInOrder) {
  ColdForecast forecast = MakeForecast(/*top_k=*/6);
  std::vector<int32_t> want = RankedExperts(0);
  want.resize(6);
  EXPECT_THAT(Guess(forecast, 1), ElementsAreArray(want));
}

TEST_F(ColdForecastTest, GuessesNoneThatLiesInVram) {
  ColdForecast forecast = MakeForecast(/*top_k=*/6);
  const std::vector<int32_t> ranked = RankedExperts(0);
  for (const int rank : {0, 2, 5}) {
    Follow(&forecast, {.kind = ExpertEditKind::kInsert, .layer = 2, .expert = ranked[rank]});
  }
  EXPECT_THAT(Guess(forecast, 1), ElementsAre(ranked[1], ranked[3], ranked[4]));

  Follow(&forecast, {.kind = ExpertEditKind::kEvict, .layer = 2, .expert = ranked[0], .slot = 0});
  Follow(&forecast, {.kind = ExpertEditKind::kInsert, .layer = 2, .expert = ranked[1]});
  Follow(&forecast, {.kind = ExpertEditKind::kInsert, .layer = 0, .expert = ranked[3]});
  EXPECT_THAT(Guess(forecast, 1), ElementsAre(ranked[0], ranked[3], ranked[4]));
}

TEST_F(ColdForecastTest, GuessesWhoLosesItsSlotOnlyOnceAnotherFillsIt) {
  ColdForecast forecast = MakeForecast(/*top_k=*/3);
  const std::vector<int32_t> ranked = RankedExperts(0);
  const auto edit = [&](ExpertEditKind kind, int expert) {
    Follow(&forecast, {.kind = kind, .layer = 2, .expert = expert, .slot = 7});
  };
  edit(ExpertEditKind::kInsert, ranked[0]);
  edit(ExpertEditKind::kOffer, ranked[0]);
  EXPECT_THAT(Guess(forecast, 1), ElementsAre(ranked[1], ranked[2]));
  forecast.FollowFill(2, ranked[1], /*slot=*/7);
  EXPECT_THAT(Guess(forecast, 1), ElementsAre(ranked[0], ranked[2]));

  // The next to lie there is evicted first.
  edit(ExpertEditKind::kOffer, ranked[1]);
  edit(ExpertEditKind::kEvict, ranked[1]);
  edit(ExpertEditKind::kInsert, ranked[1]);
  forecast.FollowFill(2, ranked[0], /*slot=*/7);
  EXPECT_THAT(Guess(forecast, 1), ElementsAre(ranked[2]));
}

TEST_F(ColdForecastTest, GuessesSeveralTokensExpertsOnceEachThoseOfOneTokenFirst) {
  int shared = 0;
  for (int round = 0; round < 20; ++round) {
    FillRows();
    ColdForecast forecast = MakeForecast(/*top_k=*/4);
    std::vector<int> tokens(kExperts);
    for (int row = 0; row < 2; ++row) {
      const std::vector<int32_t> ranked = RankedExperts(row);
      for (int rank = 0; rank < 4; ++rank) ++tokens[ranked[rank]];
    }
    std::vector<int32_t> want;
    for (const int count : {1, 2}) {
      for (int e = kExperts - 1; e >= 0; --e) {
        if (tokens[e] == count) want.push_back(e);
      }
    }
    shared += static_cast<int>(std::count(tokens.begin(), tokens.end(), 2));
    EXPECT_THAT(Guess(forecast, 2), ElementsAreArray(want));
  }
  EXPECT_GT(shared, 0);
}

TEST_F(ColdForecastTest, GuessesNothingWhereNothingIsCold) {
  ColdForecast forecast = MakeForecast(/*top_k=*/4);
  for (int e = 0; e < kExperts; ++e) {
    Follow(&forecast, {.kind = ExpertEditKind::kInsert, .layer = 2, .expert = e});
  }
  EXPECT_THAT(Guess(forecast, 2), IsEmpty());
}

TEST_F(ColdForecastTest, BeginsOnlyWhereALayerFollowsAndRowsAreFew) {
  ColdForecast forecast = MakeForecast(/*top_k=*/4);
  request_ = {.layer = 2, .rows = 1};
  EXPECT_FALSE(forecast.Begin(mailbox_));
  request_ = {.layer = 0, .rows = ColdForecast::kMostRows + 1};
  EXPECT_FALSE(forecast.Begin(mailbox_));
  ColdForecast blind(nullptr, std::vector<int>{kExperts, 0, kExperts}, 4, kHidden);
  request_ = {.layer = 0, .rows = 1};
  EXPECT_FALSE(blind.Begin(mailbox_));
}

TEST_F(ColdForecastTest, SurvivesInputsThatAreNoNumbers) {
  ColdForecast forecast = MakeForecast(/*top_k=*/4);
  x_[3] = ToBFloat16(std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(Guess(forecast, 1).size(), 4u);
}

}  // namespace
}  // namespace moed::backend
