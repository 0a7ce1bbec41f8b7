// Looks at what the routers' softmax gives every expert, for the balance that dashboards show: a
// few rows of logits every few steps, so that it costs nothing worth speaking of. Owned by the MoE
// layer; engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "cache/expert_cache.h"
#include "runtime/backend/backend.h"

namespace moed::model {

class RouterProbe {
 public:
  void BeginStep() { ++step_; }
  // `logits`: [tokens, experts] f32 on the device, complete. Errors of the device.
  absl::Status Look(int layer, const backend::Tensor& logits, backend::Backend& backend,
                    cache::ExpertCache* cache);

 private:
  int64_t step_ = 0;
  std::vector<float> rows_;  // logits, then probabilities
  std::vector<float> sums_;  // [experts]
};

}  // namespace moed::model
