// The experts that are resident and the way in for the rest: an arena of equal slots, the cache
// that decides what they hold, and the loader that fills them. Owned by the model runner; engine
// thread only.
//
// Host-driven, slots are read from the checkpoint and lie in host memory, on a GPU in its own.
// Device-driven, slots lie in device memory, every expert lies in host memory, and steps of a few
// tokens go through device() alone; longer ones go through ForEach, which finds residents in their
// slots and streams the rest through a few staging slots.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cache/expert_cache.h"
#include "runtime/backend/backend.h"
#include "runtime/model/expert_loader.h"
#include "runtime/model/expert_source.h"
#include "runtime/model/expert_traffic.h"
#include "runtime/model/host_experts.h"
#include "runtime/model/load_progress.h"
#include "runtime/model/model_config.h"
#include "runtime/model/staging_slots.h"

namespace moed::model {

struct ExpertStoreOptions {
  int num_slots = 0;
  int max_slots = 0;  // taken at start, for the cache's budget to grow into; 0: num_slots
  std::string policy;
  int io_threads = 0;  // at least 1
  // Device-driven, for steps of at most this many tokens; 0: host-driven.
  int device_tokens = 0;
  bool slots_on_device = false;  // host-driven: slots in the device's memory all the same
  // Device-driven: see DeviceExpertsOptions.
  backend::ColdPath cold_path = backend::ColdPath::kLink;
  int cold_threads = 0;
  std::shared_ptr<const backend::NextRouters> next_routers = {};
  LoadProgress progress = {};  // of Create, which device-driven reads every expert
};

class ExpertStore {
 public:
  // An expert whose weights may be read.
  struct Ready {
    int expert = 0;
    const std::byte* blob = nullptr;
  };

  // Takes the arena from `backend`. `source` must outlive the store. RESOURCE_EXHAUSTED: no memory,
  // or too few slots; UNIMPLEMENTED: experts that the device's kernels cannot take; device-driven
  // also the errors of reading every expert.
  static absl::StatusOr<std::unique_ptr<ExpertStore>> Create(const ModelConfig& config,
                                                             const ExpertStoreOptions& options,
                                                             const ExpertSource& source,
                                                             backend::Backend& backend);

  // Fills free slots before the first step: with `hot`, in order, then with the first experts of
  // every layer. No read starts after the deadline. DATA_LOSS: a damaged checkpoint.
  absl::Status Warm(const LoadProgress& progress, std::span<const cache::ExpertKey> hot = {},
                    absl::Time deadline = absl::InfiniteFuture());

  // Calls `compute` with groups of `experts` (distinct, of `layer`), each expert once, in the order
  // in which they become ready: what was read ahead, then residents, while the others are read.
  // `compute` may leave its work on the weights to the backend, for which reads into a slot wait:
  // groups may still run when this returns. Any number of slots serves any number of experts. What
  // a device-driven store reads does not end with the layer: if it used most of its experts, those
  // of the next are read into idle staging slots. `traffic` tells what was hit, read and waited
  // for.
  // A read or a backend that fails ends it with that error, with no read outstanding and no pin
  // held.
  absl::Status ForEach(int layer, std::span<const int> experts,
                       absl::FunctionRef<void(std::span<const Ready>)> compute,
                       LayerTraffic* traffic);

  // Before the first layer of a step that ForEach serves, with `rows` pairs of token and expert in
  // a layer: device-driven, begins to read if it will want most of its experts.
  void BeginPrompt(int64_t rows);

  cache::ExpertCache& cache() { return *cache_; }
  const cache::ExpertCache& cache() const { return *cache_; }
  const backend::ExpertFormat& format() const { return source_.format(); }
  // Null if host-driven.
  backend::DeviceExperts* device() { return device_.get(); }

  // Device memory beside the slots, for experts of `blob_bytes`: the staging slots.
  static int64_t StagingBytes(int64_t blob_bytes);

 private:
  ExpertStore(const ExpertSource& source, std::unique_ptr<cache::ExpertCache> cache,
              backend::Buffer arena, std::vector<int> experts_per_layer, int io_threads,
              backend::Backend& backend);
  absl::Status CreateDevice(const ModelConfig& config, const ExpertStoreOptions& options,
                            backend::Backend& backend);

  std::span<std::byte> Slot(int32_t slot) const;
  std::vector<cache::ExpertKey> WarmOrder(std::span<const cache::ExpertKey> hot) const;
  bool HoldsEveryExpert() const;
  void StartPrefetch(cache::ExpertKey key, Reread reread);
  void TakeGrants(LayerTraffic* traffic);
  int LayerToReadAhead(int layer, std::span<const int> experts) const;
  absl::Status TakeAhead(int layer, LayerTraffic* traffic);
  void Stage(int layer, LayerTraffic* traffic);
  void ReadAhead(int layer);
  int32_t StartStaging(cache::ExpertKey key);
  void AddStaged(cache::ExpertKey key, int32_t slot, std::vector<cache::Grant>* grants,
                 LayerTraffic* traffic);
  void Compute(absl::FunctionRef<void(std::span<const Ready>)> compute);
  void LetReadyGo();
  absl::Status TakeCompletions(bool wait, LayerTraffic* traffic);
  absl::Status Settle();
  void SettleGrant(const ExpertLoader::Completion& completion);
  void Abandon();

  const ExpertSource&
      source_;  // host_experts_ if device-driven, uploaded_ if slots are on a device
  std::unique_ptr<HostExperts> host_experts_;
  std::unique_ptr<const ExpertSource> uploaded_;  // source_, host-driven with slots on a device
  backend::Buffer arena_;                         // slots, then staging slots; blob_bytes each
  std::unique_ptr<cache::ExpertCache> cache_;
  std::unique_ptr<backend::DeviceExperts> device_;
  StagingSlots staging_;                // device-driven only
  std::vector<int> experts_per_layer_;  // 0 for a layer without a router
  backend::Backend& backend_;
  // Grants being read, and grants to compute; both empty between calls. After cache_, since their
  // pins must go first.
  std::vector<cache::Grant> loading_;
  std::vector<cache::Grant> ready_;
  cache::LayerDemand demand_;  // of the layer under way: its deferred experts found no slot yet
  std::vector<Ready> group_;
  std::vector<ExpertLoader::Completion> completions_;
  ExpertLoader loader_;  // last: its threads write into the arena
};

}  // namespace moed::model
