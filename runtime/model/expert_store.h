// The experts that are resident and the way in for the rest: an arena of equal slots, the cache
// that decides what they hold, and the loader that fills them. Owned by the model runner; engine
// thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache/expert_cache.h"
#include "runtime/backend/backend.h"
#include "runtime/model/expert_loader.h"
#include "runtime/model/expert_source.h"
#include "runtime/model/expert_traffic.h"
#include "runtime/model/load_progress.h"
#include "runtime/model/model_config.h"

namespace moed::model {

struct ExpertStoreOptions {
  int num_slots = 0;
  std::string policy;
  int io_threads = 0;  // at least 1
};

class ExpertStore {
 public:
  // An expert whose weights may be read.
  struct Ready {
    int expert = 0;
    const std::byte* blob = nullptr;
  };

  // Takes the arena from `backend` as host memory that its device can read: the I/O threads write
  // it, the ops read it where it lies. `source` must outlive the store. RESOURCE_EXHAUSTED: no
  // memory, or too few slots.
  static absl::StatusOr<std::unique_ptr<ExpertStore>> Create(const ModelConfig& config,
                                                             const ExpertStoreOptions& options,
                                                             const ExpertSource& source,
                                                             backend::Backend& backend);

  // Fills free slots before the first step, the first experts of every layer first.
  // DATA_LOSS: a damaged checkpoint.
  absl::Status Warm(const LoadProgress& progress);

  // Calls `compute` with groups of `experts` (distinct, of `layer`), each expert once, in the order
  // in which they become ready: residents first, while the others are read. When `compute` returns,
  // it must have finished with the group's weights. Any number of slots serves any number of
  // experts. `traffic` tells what was hit, read and waited for.
  // A read that fails ends it with that error, with no read outstanding and no pin held.
  absl::Status ForEach(int layer, std::span<const int> experts,
                       absl::FunctionRef<void(std::span<const Ready>)> compute,
                       LayerTraffic* traffic);

  cache::ExpertCache& cache() { return *cache_; }
  const cache::ExpertCache& cache() const { return *cache_; }
  const backend::ExpertFormat& format() const { return source_.format(); }

 private:
  ExpertStore(const ExpertSource& source, std::unique_ptr<cache::ExpertCache> cache,
              backend::Buffer arena, std::vector<int> experts_per_layer, int io_threads);

  std::span<std::byte> Slot(int32_t slot) const;
  void StartPrefetch(cache::ExpertKey key);
  void Demand(int layer, LayerTraffic* traffic);
  void Compute(absl::FunctionRef<void(std::span<const Ready>)> compute);
  absl::Status TakeCompletions(int layer, bool wait, LayerTraffic* traffic);
  absl::Status Settle();
  void SettleOne(const ExpertLoader::Completion& completion);
  void Abandon();

  const ExpertSource& source_;
  backend::Buffer arena_;  // num_slots * blob_bytes
  std::unique_ptr<cache::ExpertCache> cache_;
  std::vector<int> experts_per_layer_;  // 0 for a layer without a router
  // Grants being read, and grants to compute; both empty between calls. After cache_, since their
  // pins must go first.
  std::vector<cache::Grant> loading_;
  std::vector<cache::Grant> ready_;
  std::vector<int> pending_;  // experts that found no slot yet
  std::vector<Ready> group_;
  std::vector<ExpertLoader::Completion> completions_;
  ExpertLoader loader_;  // last: its threads write into the arena
};

}  // namespace moed::model
