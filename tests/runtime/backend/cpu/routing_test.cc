#include "runtime/backend/cpu/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::backend {
namespace {

using testing::ElementsAre;
using testing::FloatNear;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Choice Route(const RouterSpec& spec, const std::vector<float>& logits) {
  Choice choice{std::vector<int32_t>(spec.top_k), std::vector<float>(spec.top_k)};
  RouteToken(spec, logits, choice.ids, choice.weights);
  return choice;
}

RouterSpec TopTwoOf(int experts) { return {.num_experts = experts, .top_k = 2}; }

TEST(RoutingTest, SoftmaxRunsOverAllExperts) {
  // e^0 : e^ln2 : e^ln5 = 1 : 2 : 5
  const Choice choice = Route(TopTwoOf(3), {0.0f, std::log(2.0f), std::log(5.0f)});
  EXPECT_THAT(choice.ids, ElementsAre(2, 1));
  EXPECT_THAT(choice.weights, ElementsAre(FloatNear(5.0f / 8, 1e-6f), FloatNear(2.0f / 8, 1e-6f)));
}

TEST(RoutingTest, NormalizesChosenWeights) {
  RouterSpec spec = TopTwoOf(3);
  spec.normalize_topk = true;
  const Choice choice = Route(spec, {0.0f, std::log(2.0f), std::log(5.0f)});
  EXPECT_THAT(choice.weights, ElementsAre(FloatNear(5.0f / 7, 1e-6f), FloatNear(2.0f / 7, 1e-6f)));
}

TEST(RoutingTest, SoftmaxAfterTopKRunsOverChosenAlone) {
  RouterSpec spec = TopTwoOf(3);
  spec.softmax_after_topk = true;
  const Choice choice = Route(spec, {std::log(2.0f), 0.0f, std::log(5.0f)});
  EXPECT_THAT(choice.ids, ElementsAre(2, 0));
  EXPECT_THAT(choice.weights, ElementsAre(FloatNear(5.0f / 7, 1e-6f), FloatNear(2.0f / 7, 1e-6f)));
}

TEST(RoutingTest, SigmoidScalesAndAddsEpsilon) {
  RouterSpec spec = TopTwoOf(3);
  spec.scoring = RouterSpec::Scoring::kSigmoid;
  spec.normalize_topk = true;
  spec.normalize_epsilon = 0.75f;
  spec.scale = 2.0f;
  // sigmoid: 0.75, 0.5, 0.25
  const Choice choice = Route(spec, {std::log(3.0f), 0.0f, -std::log(3.0f)});
  EXPECT_THAT(choice.ids, ElementsAre(0, 1));
  EXPECT_THAT(choice.weights, ElementsAre(FloatNear(0.75f, 1e-6f), FloatNear(0.5f, 1e-6f)));
}

TEST(RoutingTest, EqualLogitsGoToLowerIdsFirst) {
  const RouterSpec spec = {.num_experts = 5, .top_k = 3};
  EXPECT_THAT(Route(spec, {1, 2, 1, 2, 1}).ids, ElementsAre(1, 3, 0));
}

TEST(RoutingTest, NanRanksLastAndIdsStayDistinct) {
  const RouterSpec spec = {.num_experts = 4, .top_k = 3};
  EXPECT_THAT(Route(spec, {kNan, 1, kNan, 2}).ids, ElementsAre(3, 1, 0));
  EXPECT_THAT(Route(spec, {kNan, kNan, kNan, kNan}).ids, ElementsAre(0, 1, 2));
  EXPECT_THAT(Route(spec, {-kInfinity, -kInfinity, -kInfinity, 0}).ids, ElementsAre(3, 0, 1));
}

TEST(RoutingTest, NanReachesTheWeights) {
  EXPECT_THAT(Route(TopTwoOf(3), {kNan, 1, 2}).weights,
              testing::Each(testing::Truly([](float w) { return std::isnan(w); })));
}

TEST(RoutingTest, ChoosesAsAStableSortWould) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    const int experts = 1 + static_cast<int>(random() % 130);
    const RouterSpec spec = {.num_experts = experts,
                             .top_k = 1 + static_cast<int>(random() % experts)};
    std::vector<float> logits(experts);
    for (float& logit : logits) logit = static_cast<float>(random() % 16);
    std::vector<int32_t> sorted(experts);
    std::iota(sorted.begin(), sorted.end(), 0);
    std::stable_sort(sorted.begin(), sorted.end(),
                     [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    sorted.resize(spec.top_k);
    ASSERT_EQ(Route(spec, logits).ids, sorted);
  }
}

TEST(RoutingTest, RoutesAllTokensAlikeOnAnyNumberOfThreads) {
  constexpr int kTokens = 53;
  const RouterSpec spec = {.normalize_topk = true, .num_experts = 16, .top_k = 4};
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> logits(kTokens * 16);
  for (float& logit : logits) logit = normal(random);
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    std::vector<int32_t> ids(kTokens * 4);
    std::vector<float> weights(kTokens * 4);
    RouteTokens(pool, spec, Tensor(logits.data(), DType::kF32, {kTokens, 16}),
                Tensor(ids.data(), DType::kI32, {kTokens, 4}),
                Tensor(weights.data(), DType::kF32, {kTokens, 4}));
    for (int t = 0; t < kTokens; ++t) {
      const Choice alone = Route(spec, {logits.begin() + t * 16, logits.begin() + t * 16 + 16});
      ASSERT_TRUE(std::equal(alone.ids.begin(), alone.ids.end(), ids.begin() + t * 4));
      ASSERT_TRUE(std::equal(alone.weights.begin(), alone.weights.end(), weights.begin() + t * 4));
    }
  }
}

}  // namespace
}  // namespace moed::backend
