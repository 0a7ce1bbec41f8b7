// Between the cache that decides and the device that follows (cache/device_residency.h,
// backend/device_experts.h): carries updates one way and traces the other, translating the plain
// data of two folders that do not know each other. Owned by the MoE layers; engine thread.
//
// The cache follows a step beside the next one, not between the two, where the device would wait
// for the host: what it decides from a step's trace holds from the next step but one on.
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

  // Before a step is issued. Sends what the host filled meanwhile, so that the step finds it.
  // INTERNAL, then and for ever: the device broke the protocol in an earlier step.
  absl::Status BeginStep();

  // After its layers ended, and the step before was followed, for each layer in order: how the
  // experts of `groups` were come by. `loads` is what ExpertTraffic says of them.
  void AddLayer(int layer, const ExpertGroups& groups, std::span<const cache::ExpertLoad> loads,
                const backend::ExpertFormat& format, LayerTraffic* traffic);
  void EndStep();

  // Follows the last step that ended, if nobody has, and sends what the cache decides then, behind
  // the steps issued so far. Before anything else is asked of the cache; at best while the next
  // step runs. Errors as of BeginStep.
  absl::Status Follow();

 private:
  // Sends what the cache decided since it was last asked.
  absl::Status Publish();

  cache::ExpertCache& cache_;
  backend::DeviceExperts& device_;
  absl::Status status_;
  cache::TableUpdate update_;  // the last one sent
  std::vector<backend::ExpertEdit> edits_;
  uint64_t step_table_number_ = 0;  // the table of the step issued last
  cache::DeviceTrace trace_;
  bool follows_ = true;  // all steps that ended
};

}  // namespace moed::model
