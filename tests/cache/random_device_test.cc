// Random operations on the device-driven cache: steps are launched, run and replayed at different
// times, while the host fills slots, keeps experts and changes the budget. Whatever the device
// reads is checked by ReferenceArena; when all is replayed, host and device must agree.
// MOED_RANDOM_OPERATIONS sets how many operations (default 1000000).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "cache/device_residency.h"
#include "cache/expert_cache.h"
#include "tests/cache/reference_arena.h"
#include "tests/cache/simulated_device.h"

namespace moed::cache {
namespace {

int64_t NumOperations() {
  const char* text = std::getenv("MOED_RANDOM_OPERATIONS");
  return text == nullptr ? 1000000 : std::atoll(text);
}

class RandomDeviceHost {
 public:
  RandomDeviceHost(const ExpertCacheOptions& options, uint32_t seed)
      : options_(options),
        random_(seed),
        arena_(options.max_slots),
        device_(options_.experts_per_layer, &arena_) {
    cache_ = *ExpertCache::Create(options);
  }

  void Operate() {
    switch (Below(12)) {
      case 0:
      case 1:
      case 2:
        LaunchStep();
        break;
      case 3:
      case 4:
      case 5:
        if (!device_.idle()) traces_.push_back(device_.RunOne());
        break;
      case 6:
      case 7:
      case 8:
        ReplayOne();
        break;
      case 9:
        HostFill();
        break;
      case 10:
        if (Below(20) == 0) KeepSome();
        break;
      case 11:
        if (Below(100) == 0) SetSomeBudget();
        break;
    }
    CheckBudget();
  }

  // Lets everything in flight end, then compares the device's table with the host's mirror.
  void SettleAndCompare() {
    for (int round = 0; round < 4; ++round) {
      TableUpdate update;
      if (cache_->device()->Publish(&update)) device_.Launch(update, {});
      while (!device_.idle()) traces_.push_back(device_.RunOne());
      while (!traces_.empty()) ReplayOne();
    }
    int32_t entries = 0;
    int32_t offered = 0;
    const DeviceTableModel& table = device_.table();
    for (int layer = 0; layer < static_cast<int>(options_.experts_per_layer.size()); ++layer) {
      for (int expert = 0; expert < options_.experts_per_layer[layer]; ++expert) {
        const ExpertKey key{layer, expert};
        const bool resident = table.entry(key).slot >= 0 && !table.LiesInOffer(key);
        ASSERT_EQ(resident, cache_->resident(key)) << layer << "," << expert;
        entries += resident ? 1 : 0;
      }
      offered += table.num_offered(layer);
    }
    ASSERT_EQ(offered, cache_->device()->offered_slots());
    ASSERT_EQ(cache_->device()->retiring_slots(), 0);
    ASSERT_LE(entries + offered, cache_->num_slots());
  }

 private:
  int Below(int n) { return static_cast<int>(random_() % n); }
  ExpertKey SomeExpert() {
    const int layer = Below(static_cast<int>(options_.experts_per_layer.size()));
    return {layer, Below(1 + Below(options_.experts_per_layer[layer]))};
  }

  void LaunchStep() {
    std::vector<ExpertKey> experts;
    for (int i = Below(8); i > 0; --i) {
      const ExpertKey key = SomeExpert();
      if (std::find(experts.begin(), experts.end(), key) == experts.end()) experts.push_back(key);
    }
    TableUpdate update;
    const bool edited = Below(3) != 0 && cache_->device()->Publish(&update);
    device_.Launch(edited ? std::optional(std::move(update)) : std::nullopt, std::move(experts));
  }
  void ReplayOne() {
    if (traces_.empty()) return;
    const absl::Status status = cache_->device()->Replay(traces_.front());
    ASSERT_TRUE(status.ok()) << status;
    traces_.pop_front();
  }
  void HostFill() {
    std::optional<Grant> grant = cache_->Prefetch(SomeExpert());
    if (!grant.has_value()) return;
    arena_.StartFill(grant->slot, grant->key, grant->generation);
    arena_.EndFill(grant->slot);
    ASSERT_TRUE(Below(8) == 0 ? cache_->FillFailed(grant->slot, grant->generation)
                              : cache_->Filled(grant->slot, grant->generation));
  }
  void KeepSome() {
    const ExpertKey key = SomeExpert();
    const absl::Status status = Below(3) == 0 ? cache_->PinExpert(key) : cache_->UnpinExpert(key);
    ASSERT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
  }
  void SetSomeBudget() {
    const absl::Status status = cache_->SetBudget(Below(1 + options_.max_slots));
    ASSERT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
  }
  void CheckBudget() {
    int32_t resident = 0;
    for (const LayerStats& layer : cache_->Stats().layers) resident += layer.resident;
    ASSERT_LE(resident + cache_->device()->offered_slots() + cache_->device()->retiring_slots(),
              options_.max_slots + cache_->device()->retiring_slots());
  }

  const ExpertCacheOptions options_;
  std::mt19937 random_;
  ReferenceArena arena_;
  SimulatedDevice device_;
  std::unique_ptr<ExpertCache> cache_;
  std::deque<DeviceTrace> traces_;
};

class RandomDeviceTest : public ::testing::TestWithParam<const char*> {};

TEST_P(RandomDeviceTest, DeviceNeverReadsAWrongExpertAndHostFollows) {
  const ExpertCacheOptions kShapes[] = {
      {.experts_per_layer = {6, 6}, .top_k = 2, .num_slots = 3, .max_slots = 5},
      {.experts_per_layer = {8, 12, 8, 5}, .top_k = 2, .num_slots = 14, .max_slots = 24},
      {.experts_per_layer = {16, 16, 16}, .top_k = 1, .num_slots = 0, .max_slots = 48},
  };
  uint32_t seed = 1;
  for (ExpertCacheOptions shape : kShapes) {
    shape.policy = GetParam();
    shape.driver = CacheDriver::kDevice;
    RandomDeviceHost host(shape, seed++);
    for (int64_t i = 0; i < NumOperations() / 12; ++i) {
      host.Operate();
      if (i % 1000 == 999) host.SettleAndCompare();
      ASSERT_FALSE(HasFailure()) << "operation " << i << " of shape " << seed - 1;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, RandomDeviceTest,
                         ::testing::Values("recency-frequency", "lru", "lfu", "static"),
                         [](const auto& policy) {
                           std::string name = policy.param;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace moed::cache
