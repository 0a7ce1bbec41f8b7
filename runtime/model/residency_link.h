// Between the cache that decides and the device that follows (cache/device_residency.h,
// backend/device_experts.h): carries updates one way and traces the other, translating the plain
// data of two folders that do not know each other. Owned by the expert store; engine thread.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "cache/device_table.h"
#include "cache/expert_cache.h"
#include "runtime/backend/device_experts.h"
#include "runtime/model/expert_groups.h"
#include "runtime/model/expert_traffic.h"

namespace moed::model {

class ResidencyLink {
 public:
  // Both must outlive this; `cache` is device-driven.
  ResidencyLink(cache::ExpertCache& cache, backend::DeviceExperts& device)
      : cache_(cache), device_(device) {}

  // Before a step is issued: what the cache decided since the last one.
  absl::Status Publish();

  // After it ended, for each layer in order: how the experts of `groups` were come by. `loads` is
  // what ExpertTraffic says of them.
  void AddLayer(int layer, const ExpertGroups& groups, std::span<const cache::ExpertLoad> loads,
                const backend::ExpertFormat& format, LayerTraffic* traffic);
  // Then the cache follows. INTERNAL: the device broke the protocol.
  absl::Status Replay();

 private:
  cache::ExpertCache& cache_;
  backend::DeviceExperts& device_;
  cache::TableUpdate update_;
  std::vector<backend::ExpertEdit> edits_;
  cache::DeviceTrace trace_;
};

}  // namespace moed::model
