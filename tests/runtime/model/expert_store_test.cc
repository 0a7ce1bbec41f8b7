#include "runtime/model/expert_store.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/backend/cpu/cpu_backend.h"

namespace moed::model {
namespace {

using ::testing::HasSubstr;

constexpr int kLayers = 3;  // the middle one is dense
constexpr int kExperts = 12;
constexpr int kTopK = 2;

// Experts whose blobs name them. Reads take a while, of varying length, and fail where told.
class NamedExperts : public ExpertSource {
 public:
  NamedExperts() : format_(backend::ExpertFormatKind::kBF16, 32, 4) {}
  const backend::ExpertFormat& format() const override { return format_; }

  absl::Status Read(cache::ExpertKey key, ReadShare share,
                    std::span<std::byte> blob) const override {
    std::this_thread::sleep_for(std::chrono::microseconds((key.expert * 7 + key.layer) % 5 * 20));
    if (key.expert == failing_expert) return absl::DataLossError("bad sector");
    std::memset(blob.data(), 0, blob.size());
    std::memcpy(blob.data(), &key, sizeof(key));
    ++reads;
    if (share.reread == Reread::kNever) ++reads_once;
    return absl::OkStatus();
  }

  std::atomic<int> failing_expert = -1;
  mutable std::atomic<int64_t> reads = 0;
  mutable std::atomic<int64_t> reads_once = 0;

 private:
  backend::ExpertFormat format_;
};

class ExpertStoreTest : public ::testing::Test {
 protected:
  ExpertStoreTest() : backend_(*backend::CreateCpuBackend({.num_threads = 1})) {
    config_.layers.resize(kLayers);
    config_.layers[1].is_moe = false;
    config_.router.num_experts = kExperts;
    config_.router.top_k = kTopK;
  }

  std::unique_ptr<ExpertStore> CreateStore(int num_slots,
                                           const std::string& policy = "recency-frequency") {
    auto store = ExpertStore::Create(
        config_, {.num_slots = num_slots, .policy = policy, .io_threads = 3}, source_, *backend_);
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }

  std::unique_ptr<ExpertStore> CreateDeviceDrivenStore(int num_slots) {
    auto store = ExpertStore::Create(config_,
                                     {.num_slots = num_slots,
                                      .policy = "recency-frequency",
                                      .io_threads = 3,
                                      .device_tokens = 4},
                                     source_, *backend_);
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }

  // Computes `experts` and checks that each is seen once, with its own weights.
  absl::Status Visit(ExpertStore& store, int layer, const std::vector<int>& experts) {
    std::multiset<int> seen;
    absl::Status status = store.ForEach(
        layer, experts,
        [&](std::span<const ExpertStore::Ready> group) {
          for (const ExpertStore::Ready& ready : group) {
            cache::ExpertKey key;
            std::memcpy(&key, ready.blob, sizeof(key));
            EXPECT_EQ(key, (cache::ExpertKey{layer, ready.expert}));
            seen.insert(ready.expert);
          }
        },
        &traffic_);
    if (status.ok()) {
      EXPECT_EQ(seen, std::multiset<int>(experts.begin(), experts.end()));
    }
    return status;
  }

  // Experts of a layer that came over the link.
  static int64_t LinkReads(const ExpertStore& store, int layer) {
    const auto link = static_cast<int>(cache::BytePath::kLink);
    return store.cache().Stats().layers[layer].bytes_total[link] /
           static_cast<int64_t>(store.format().blob_bytes());
  }

  ModelConfig config_;
  NamedExperts source_;
  std::unique_ptr<backend::Backend> backend_;
  LayerTraffic traffic_;
};

std::vector<int> RandomExperts(std::mt19937& random) {
  std::vector<int> experts;
  const int percent = static_cast<int>(10 + random() % 90);
  for (int expert = 0; expert < kExperts; ++expert) {
    if (static_cast<int>(random() % 100) < percent) experts.push_back(expert);
  }
  return experts;
}

TEST_F(ExpertStoreTest, GivesEveryExpertOnceAtAnyBudgetAndPolicy) {
  std::mt19937 random(1);
  for (const char* policy : {"recency-frequency", "lru", "lfu", "static"}) {
    for (int num_slots : {kTopK, 3, 7, 2 * kExperts}) {
      const std::unique_ptr<ExpertStore> store = CreateStore(num_slots, policy);
      source_.reads = 0;
      int64_t hits = 0, misses = 0;
      for (int step = 0; step < 40; ++step) {
        store->cache().BeginStep();
        for (int layer : {0, 2}) {
          const std::vector<int> experts = RandomExperts(random);
          ASSERT_TRUE(Visit(*store, layer, experts).ok());
          hits += static_cast<int64_t>(traffic_.hits.size());
          misses += static_cast<int64_t>(traffic_.misses.size());
          EXPECT_EQ(traffic_.hits.size() + traffic_.misses.size(), experts.size());
        }
      }
      EXPECT_EQ(source_.reads, misses) << policy << " " << num_slots;
      const cache::CacheStats stats = store->cache().Stats();
      const int64_t paged = stats.layers[0].bytes_total[0] + stats.layers[2].bytes_total[0];
      EXPECT_EQ(stats.layers[0].hits_total + stats.layers[2].hits_total, hits);
      EXPECT_EQ(stats.layers[0].misses_total + stats.layers[2].misses_total, misses);
      EXPECT_EQ(paged, misses * static_cast<int64_t>(store->format().blob_bytes()));
    }
  }
}

TEST_F(ExpertStoreTest, ReadsNothingOnceEverythingIsResident) {
  const std::unique_ptr<ExpertStore> store = CreateStore(2 * kExperts);
  int64_t last_done = 0, total = 0;
  ASSERT_TRUE(store
                  ->Warm([&](int64_t done, int64_t in_all) {
                    EXPECT_GE(done, last_done);
                    last_done = done;
                    total = in_all;
                  })
                  .ok());
  EXPECT_EQ(last_done, total);
  EXPECT_EQ(total, static_cast<int64_t>(2 * kExperts * store->format().blob_bytes()));
  source_.reads = 0;
  store->cache().BeginStep();
  ASSERT_TRUE(Visit(*store, 0, {0, 5, 11}).ok());
  ASSERT_TRUE(Visit(*store, 2, {1, 2, 3}).ok());
  EXPECT_EQ(source_.reads, 0);
  EXPECT_EQ(traffic_.stall_seconds, 0);
}

TEST_F(ExpertStoreTest, WarmFillsEverySlotThatMayHoldAResident) {
  const std::unique_ptr<ExpertStore> store = CreateStore(9);
  ASSERT_TRUE(store->Warm(nullptr).ok());
  const cache::CacheStats stats = store->cache().Stats();
  EXPECT_EQ(source_.reads, stats.layers[0].resident + stats.layers[2].resident);
  EXPECT_EQ(source_.reads, 8);  // one slot stays free for experts that are not kept
}

TEST_F(ExpertStoreTest, AFailedReadEndsTheLayerWithItsErrorAndHoldsNothing) {
  for (int num_slots : {kTopK, 5, 2 * kExperts}) {
    const std::unique_ptr<ExpertStore> store = CreateStore(num_slots);
    store->cache().BeginStep();
    source_.failing_expert = 6;
    std::vector<int> all(kExperts);
    for (int i = 0; i < kExperts; ++i) all[i] = i;
    const absl::Status status = Visit(*store, 0, all);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), HasSubstr("bad sector"));
    // Nothing is pinned or half-filled: the same experts come once the disk is well.
    source_.failing_expert = -1;
    store->cache().BeginStep();
    EXPECT_TRUE(Visit(*store, 0, all).ok());
    EXPECT_TRUE(Visit(*store, 2, all).ok());
  }
}

TEST_F(ExpertStoreTest, OnlyWhatIsLoadedForGoodIsReadAroundThePageCache) {
  const std::unique_ptr<ExpertStore> part = CreateStore(2 * kExperts - 1);
  ASSERT_TRUE(part->Warm(nullptr).ok());
  EXPECT_EQ(source_.reads_once, 0);
  const std::unique_ptr<ExpertStore> all = CreateStore(2 * kExperts);
  ASSERT_TRUE(all->Warm(nullptr).ok());
  EXPECT_EQ(source_.reads_once, 2 * kExperts);
  CreateDeviceDrivenStore(kTopK);
  EXPECT_EQ(source_.reads_once, 4 * kExperts);
  const std::unique_ptr<ExpertStore> cold = CreateStore(2 * kExperts);
  cold->cache().BeginStep();
  ASSERT_TRUE(Visit(*cold, 0, {1, 2}).ok());
  EXPECT_EQ(source_.reads_once, 4 * kExperts);
}

TEST_F(ExpertStoreTest, AFailedReadWhileWarmingIsReported) {
  const std::unique_ptr<ExpertStore> store = CreateStore(2 * kExperts);
  source_.failing_expert = 3;
  EXPECT_EQ(store->Warm(nullptr).code(), absl::StatusCode::kDataLoss);
}

TEST_F(ExpertStoreTest, DeviceDrivenStreamsWhatHasNoSlotAndGivesUpNone) {
  std::mt19937 random(2);
  for (const int num_slots : {0, 3, 7, 2 * kExperts}) {
    source_.reads = 0;
    const std::unique_ptr<ExpertStore> store = CreateDeviceDrivenStore(num_slots);
    ASSERT_NE(store->device(), nullptr);
    ASSERT_TRUE(store->Warm(nullptr).ok());
    const int warm = store->cache().Stats().layers[0].resident;
    EXPECT_EQ(warm + store->cache().Stats().layers[2].resident, num_slots);
    int64_t misses = 0;
    for (int step = 0; step < 40; ++step) {
      store->cache().BeginStep();
      for (const int layer : {0, 2}) {
        const std::vector<int> experts = RandomExperts(random);
        ASSERT_TRUE(Visit(*store, layer, experts).ok());
        misses += static_cast<int64_t>(traffic_.misses.size());
        EXPECT_EQ(traffic_.hits.size() + traffic_.misses.size(), experts.size());
      }
    }
    // Slots and staging were filled from host memory, where every expert was read to at first.
    EXPECT_EQ(source_.reads, 2 * kExperts);
    const cache::CacheStats stats = store->cache().Stats();
    EXPECT_EQ(stats.layers[0].resident, warm);
    EXPECT_EQ(stats.layers[0].misses_total + stats.layers[2].misses_total, misses);
    // And what was read ahead in vain.
    EXPECT_GE(LinkReads(*store, 0) + LinkReads(*store, 2), misses);
  }
}

TEST_F(ExpertStoreTest, DeviceDrivenReadsTheNextLayerAheadOnce) {
  std::vector<int> all(kExperts);
  std::iota(all.begin(), all.end(), 0);
  for (const int num_slots : {0, 5}) {
    const std::unique_ptr<ExpertStore> store = CreateDeviceDrivenStore(num_slots);
    ASSERT_TRUE(store->Warm(nullptr).ok());
    const int64_t warm = LinkReads(*store, 0) + LinkReads(*store, 2);
    for (int step = 1; step <= 20; ++step) {
      store->cache().BeginStep();
      store->BeginPrompt(kExperts * 100);
      ASSERT_TRUE(Visit(*store, 0, all).ok());
      ASSERT_TRUE(Visit(*store, 2, all).ok());
      EXPECT_EQ(traffic_.hits.size() + traffic_.misses.size(), all.size());
      EXPECT_EQ(LinkReads(*store, 0) + LinkReads(*store, 2) - warm,
                step * (2 * kExperts - num_slots));
    }
  }
}

TEST_F(ExpertStoreTest, DeviceDrivenDropsWhatWasReadAheadInVain) {
  std::vector<int> all(kExperts);
  std::iota(all.begin(), all.end(), 0);
  const std::unique_ptr<ExpertStore> store = CreateDeviceDrivenStore(0);
  for (int step = 1; step <= 20; ++step) {
    store->cache().BeginStep();
    ASSERT_TRUE(Visit(*store, 0, all).ok());
    // Layer 2's are on their way, or there, and are dropped.
    const int64_t read = (step - 1) * (kExperts + 2) + kExperts;
    do {
      ASSERT_TRUE(Visit(*store, 0, {1, 2}).ok());
    } while (LinkReads(*store, 2) < read);
    ASSERT_TRUE(Visit(*store, 2, {3, 4}).ok());
    EXPECT_EQ(LinkReads(*store, 2), read + 2);
  }
}

TEST_F(ExpertStoreTest, DeviceDrivenGivesAPromptFreeSlotsToFill) {
  const std::unique_ptr<ExpertStore> store = CreateDeviceDrivenStore(2 * kExperts);
  store->cache().BeginStep();
  ASSERT_TRUE(Visit(*store, 0, {0, 5, 11}).ok());
  EXPECT_EQ(traffic_.misses.size(), 3u);
  store->cache().BeginStep();
  ASSERT_TRUE(Visit(*store, 0, {0, 5, 11}).ok());
  EXPECT_EQ(traffic_.hits.size(), 3u);
}

TEST_F(ExpertStoreTest, DeviceDrivenReportsAFailedReadAtOnce) {
  source_.failing_expert = 3;
  const auto store = ExpertStore::Create(
      config_, {.num_slots = 4, .policy = "lru", .io_threads = 2, .device_tokens = 4}, source_,
      *backend_);
  EXPECT_EQ(store.status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(ExpertStoreTest, RefusesFewerThanTopKSlots) {
  const auto store = ExpertStore::Create(
      config_, {.num_slots = kTopK - 1, .policy = "lru", .io_threads = 1}, source_, *backend_);
  EXPECT_EQ(store.status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace moed::model
