// Which neurons the threads fetch ahead; that the answers stay right is ColdWorkersTest's.
#include "runtime/backend/cpu/cold_fetch.h"

#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/aligned_allocator.h"

namespace moed::backend {
namespace {

constexpr int kExperts = 4;
constexpr int kThreads = 3;
constexpr int64_t kHidden = 64;
constexpr int64_t kIntermediate = 72;

// A token that will choose experts 1 and 3 of layer 1.
class ColdFetchTest : public testing::Test {
 protected:
  ColdFetchTest()
      : format_(ExpertFormatKind::kBF16, kHidden, kIntermediate),
        blobs_(hwy::AllocateAligned<std::byte>(2 * kExperts * format_.blob_bytes())),
        layers_{blobs_.get(), blobs_.get() + kExperts * format_.blob_bytes()},
        forecast_(MakeRouters(), std::vector<int>(2, kExperts), /*top_k=*/2, kHidden),
        fetch_(forecast_, format_, layers_, kThreads) {
    mailbox_.request = &request_;
    mailbox_.x = x_.data();
    mailbox_.row_values = kHidden;
    mailbox_.hidden = kHidden;
  }

  static std::shared_ptr<const NextRouters> MakeRouters() {
    auto routers = std::make_shared<NextRouters>(2);
    std::vector<BFloat16> weights;
    for (const float value : {-1.0f, 2.0f, 0.0f, 1.0f}) {
      weights.insert(weights.end(), kHidden, ToBFloat16(value));
    }
    (*routers)[0] = {.layer = 1, .weights = weights};
    return routers;
  }

  void Begin(int layer) {
    request_ = {.layer = layer, .rows = 1};
    fetch_.Begin(mailbox_);
  }
  // By all threads but one, which sleeps: another does what is its.
  void ScoreAndFetch() {
    for (int worker = 0; worker < kThreads - 1; ++worker) fetch_.ScoreOwn(worker);
    fetch_.ScoreOthers(0);
    fetch_.WaitForScores();
    const auto go_on = [] { return false; };
    for (int share = 0; share < kThreads; ++share) {
      fetch_.Fetch(share, share % (kThreads - 1), go_on);
    }
  }

  ExpertFormat format_;
  hwy::AlignedFreeUniquePtr<std::byte[]> blobs_;
  std::vector<const std::byte*> layers_;
  ColdForecast forecast_;
  ColdFetch fetch_;
  std::vector<BFloat16> x_ = std::vector<BFloat16>(kHidden, ToBFloat16(1));
  ColdRequest request_;
  ColdMailbox mailbox_;
};

TEST_F(ColdFetchTest, SharesOutEveryNeuronOfTheGuessOnce) {
  Begin(0);
  ScoreAndFetch();
  Begin(1);
  std::map<int32_t, std::set<int32_t>> neurons;
  int64_t count = 0;
  for (int worker = 0; worker < kThreads; ++worker) {
    for (const FetchedNeurons& run : fetch_.FetchedBy(worker)) {
      count += run.count;
      for (int32_t i = 0; i < run.count; ++i) neurons[run.expert].insert(run.first + i);
    }
  }
  EXPECT_EQ(count, 2 * kIntermediate);
  ASSERT_EQ(neurons.size(), 2u);
  for (const int expert : {1, 3}) {
    EXPECT_EQ(neurons[expert].size(), static_cast<size_t>(kIntermediate));
    EXPECT_EQ(*neurons[expert].rbegin(), kIntermediate - 1);
  }
}

TEST_F(ColdFetchTest, KeepsNothingForARequestOfAnotherLayer) {
  Begin(0);
  ScoreAndFetch();
  Begin(0);
  for (int worker = 0; worker < kThreads; ++worker) EXPECT_TRUE(fetch_.FetchedBy(worker).empty());
  // Nor what is older than the last guess.
  Begin(1);
  for (int worker = 0; worker < kThreads; ++worker) EXPECT_TRUE(fetch_.FetchedBy(worker).empty());
}

TEST_F(ColdFetchTest, StopsWhenToldTo) {
  Begin(0);
  fetch_.ScoreOthers(0);
  int looks = 0;
  fetch_.Fetch(0, 0, [&] { return ++looks > 1; });
  EXPECT_EQ(looks, 2);
  Begin(1);
  EXPECT_TRUE(fetch_.FetchedBy(0).empty());
}

TEST_F(ColdFetchTest, DoesNothingBehindTheLastLayer) {
  Begin(1);
  ScoreAndFetch();
  Begin(0);
  for (int worker = 0; worker < kThreads; ++worker) EXPECT_TRUE(fetch_.FetchedBy(worker).empty());
}

}  // namespace
}  // namespace moed::backend
