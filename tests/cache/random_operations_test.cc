// Random operations on the cache, checked against ReferenceArena after every one.
// MOED_RANDOM_OPERATIONS sets how many (default 2000000).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "cache/expert_cache.h"
#include "tests/cache/reference_arena.h"

namespace moed::cache {
namespace {

int64_t NumOperations() {
  const char* text = std::getenv("MOED_RANDOM_OPERATIONS");
  return text == nullptr ? 2000000 : std::atoll(text);
}

// A caller of the host-driven side that does everything a caller may, in any order.
class RandomHost {
 public:
  RandomHost(const ExpertCacheOptions& options, uint32_t seed)
      : options_(options), random_(seed), arena_(std::max(options.max_slots, options.num_slots)) {
    cache_ = *ExpertCache::Create(options);
    cache_->BeginStep();
  }

  void Operate() {
    const std::vector<int32_t> before = Residents();
    served_layer_ = -1;
    bool may_evict = true;
    switch (Below(16)) {
      case 0:
      case 1:
      case 2:
      case 3:
        DemandSome();
        break;
      case 4:
        LetAllGo();
        may_evict = false;
        break;
      case 5:
        PrefetchSome();
        break;
      case 6:
        cache_->BeginStep();
        break;
      case 7:
        if (options_.max_slots > 0 && Below(50) == 0) ChangeBudget();
        break;
      case 8:
        KeepSome();
        break;
      case 9:
        DemandMore();
        break;
      default:
        may_evict = false;
        Below(2) == 0 ? EndFill() : LetGo();
    }
    if (::testing::Test::HasFatalFailure()) return;
    if (may_evict) CheckFloors(before, Residents(), Floors(), served_layer_);
    CheckCounts();
  }

 private:
  int Below(int n) { return static_cast<int>(random_() % n); }
  int NumLayers() const { return static_cast<int>(options_.experts_per_layer.size()); }

  int SomeLayer() {
    int layer = Below(NumLayers());
    while (options_.experts_per_layer[layer] == 0) layer = (layer + 1) % NumLayers();
    return layer;
  }
  // Skewed, so that some experts are hot; distinct.
  std::vector<int> SomeExperts(int layer) {
    const int experts = options_.experts_per_layer[layer];
    std::vector<int> chosen;
    const int count = 1 + Below(Below(4) == 0 ? experts : std::min(experts, 2 * options_.top_k));
    for (int i = 0; i < count; ++i) {
      const int expert = Below(1 + Below(experts));
      if (std::find(chosen.begin(), chosen.end(), expert) == chosen.end()) chosen.push_back(expert);
    }
    return chosen;
  }

  void DemandSome() {
    const int layer = SomeLayer();
    DemandOf(layer, SomeExperts(layer));
  }
  void DemandOf(int layer, const std::vector<int>& experts) {
    std::vector<ExpertLoad> loads;
    for (int expert : experts) loads.push_back({.expert = expert, .tokens = 1, .weight = 1});
    cache_->Observe(layer, loads);
    served_layer_ = layer;
    const bool nothing_held = held_.empty();
    demand_.deferred.clear();
    cache_->Demand(layer, experts, &demand_);
    ASSERT_EQ(demand_.grants.size() + demand_.deferred.size(), experts.size());
    ASSERT_FALSE(nothing_held && demand_.grants.empty()) << "no progress";
    HoldGrants();
  }
  // The next wave of the last demand, whatever happened meanwhile.
  void DemandMore() {
    const bool nothing_held = held_.empty();
    const size_t deferred = demand_.deferred.size();
    served_layer_ = demand_.layer;
    cache_->DemandDeferred(&demand_);
    ASSERT_EQ(demand_.grants.size() + demand_.deferred.size(), deferred);
    ASSERT_FALSE(nothing_held && deferred > 0 && demand_.grants.empty()) << "no progress";
    HoldGrants();
  }
  void HoldGrants() {
    granted_ += demand_.grants.size();
    for (Grant& grant : demand_.grants) Hold(std::move(grant));
  }
  void LetAllGo() {
    for (const Grant& grant : held_) arena_.EndRead(grant.slot);
    held_.clear();
  }
  void PrefetchSome() {
    const int layer = SomeLayer();
    served_layer_ = layer;
    std::optional<Grant> grant = cache_->Prefetch({layer, SomeExperts(layer)[0]});
    if (grant.has_value()) Hold(*std::move(grant));
  }
  void Hold(Grant grant) {
    if (grant.to_fill) {
      ASSERT_FALSE(grant.resident);
      arena_.StartFill(grant.slot, grant.key, grant.generation);
    } else {
      ASSERT_EQ(grant.resident, arena_.filled(grant.slot));
    }
    arena_.StartRead(grant.slot, grant.key, grant.generation);
    held_.push_back(std::move(grant));
  }
  void EndFill() {
    if (held_.empty()) return;
    const Grant& grant = held_[Below(static_cast<int>(held_.size()))];
    if (Below(10) == 0) {
      cache_->FillFailed(grant.slot, grant.generation);
    } else if (cache_->Filled(grant.slot, grant.generation)) {
      arena_.EndFill(grant.slot);
    }
    if (!cache_->resident(grant.key)) return;
    if (arena_.filled(grant.slot)) {
      ASSERT_TRUE(cache_->Verify(grant.key, grant.slot, grant.generation).ok());
    }
  }
  void LetGo() {
    if (held_.empty()) return;
    const int index = Below(static_cast<int>(held_.size()));
    arena_.EndRead(held_[index].slot);
    held_.erase(held_.begin() + index);
  }
  void KeepSome() {
    const int layer = SomeLayer();
    const ExpertKey key{layer, SomeExperts(layer)[0]};
    const absl::Status status = Below(3) == 0 ? cache_->PinExpert(key) : cache_->UnpinExpert(key);
    ASSERT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
  }
  void ChangeBudget() {
    const int slots = Below(1 + options_.max_slots);
    const absl::Status status = cache_->SetBudget(slots);
    ASSERT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
    ASSERT_TRUE(!status.ok() || cache_->num_slots() == slots);
  }

  std::vector<int32_t> Residents() const {
    std::vector<int32_t> residents;
    for (const LayerStats& layer : cache_->Stats().layers) residents.push_back(layer.resident);
    return residents;
  }
  std::vector<int32_t> Floors() const {
    std::vector<int32_t> floors;
    for (const LayerStats& layer : cache_->Stats().layers) floors.push_back(layer.floor);
    return floors;
  }
  void CheckCounts() {
    int64_t served = 0;
    int32_t resident = 0;
    for (const LayerStats& layer : cache_->Stats().layers) {
      served += layer.hits_total + layer.misses_total;
      resident += layer.resident;
    }
    ASSERT_EQ(served, granted_);
    // What is pinned may outlast a cut of the budget, until the next operation.
    const int most = options_.max_slots > 0 ? options_.max_slots : cache_->num_slots();
    ASSERT_LE(resident, most);
    ASSERT_LE(arena_.slots_read(), most);
  }

  const ExpertCacheOptions options_;
  std::mt19937 random_;
  ReferenceArena arena_;
  std::unique_ptr<ExpertCache> cache_;
  LayerDemand demand_;
  std::vector<Grant> held_;
  int served_layer_ = -1;
  int64_t granted_ = 0;
};

class RandomOperationsTest : public ::testing::TestWithParam<std::string> {};

TEST_P(RandomOperationsTest, HostDrivenKeepsEveryPromise) {
  const ExpertCacheOptions kShapes[] = {
      {.experts_per_layer = {6, 6}, .top_k = 2, .num_slots = 2},
      {.experts_per_layer = {8, 0, 8, 5}, .top_k = 2, .num_slots = 11, .max_slots = 21},
      {.experts_per_layer = {16, 16, 16, 16}, .top_k = 4, .num_slots = 40, .max_slots = 64},
      {.experts_per_layer = {4}, .top_k = 4, .num_slots = 4},
  };
  uint32_t seed = 1;
  for (ExpertCacheOptions shape : kShapes) {
    shape.policy = GetParam();
    RandomHost host(shape, seed++);
    for (int64_t i = 0; i < NumOperations() / 16; ++i) {
      host.Operate();
      ASSERT_FALSE(HasFatalFailure()) << "operation " << i << " of shape " << seed - 1;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, RandomOperationsTest,
                         ::testing::Values("recency-frequency", "lru", "lfu", "static"),
                         [](const auto& policy) {
                           std::string name = policy.param;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace moed::cache
