// Whose tokens caused which expert traffic in a step: what each layer reports to the routing
// statistics, and each sequence's share of hits, misses, bytes and waiting. Engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/routing_trace.h"
#include "runtime/model/expert_groups.h"
#include "runtime/model/step.h"

namespace moed::model {

// How one layer's experts were come by.
struct LayerTraffic {
  std::vector<int> hits;    // experts found resident
  std::vector<int> misses;  // experts that were read
  double stall_seconds = 0;

  void Clear() {
    hits.clear();
    misses.clear();
    stall_seconds = 0;
  }
};

class ExpertTraffic {
 public:
  explicit ExpertTraffic(int64_t expert_bytes) : expert_bytes_(expert_bytes) {}

  // Starts the accounts of a step, one for each chunk.
  void BeginStep(const StepInput& input);

  // What `groups` says to the routing statistics. Valid until the next call.
  std::span<const cache::ExpertLoad> Loads(const ExpertGroups& groups);

  // Divides an expert's traffic evenly among the chunks whose tokens chose it, and a layer's stall
  // evenly among its misses first: each sum over chunks equals the layer's total.
  void Charge(const ExpertGroups& groups, const LayerTraffic& traffic);

  // [chunks] of the step so far.
  std::span<const ExpertShare> shares() const { return shares_; }

 private:
  // Calls function(chunk, its tokens that chose `expert`) for every chunk that has some, in order.
  template <typename Function>
  void ForEachChooser(const ExpertGroups& groups, int expert, const Function& function) const;
  // The chunks of the tokens that chose `expert`, each once, in order.
  std::span<const int32_t> Choosers(const ExpertGroups& groups, int expert);

  int64_t expert_bytes_;
  std::vector<int32_t> token_chunk_;  // [tokens]: whose token it is
  std::vector<int32_t> chunk_end_;    // [chunks]: the token behind its last
  std::vector<float> chunk_weight_;   // [chunks]: of one of its tokens
  std::vector<ExpertShare> shares_;   // [chunks]
  std::vector<int32_t> choosers_;     // scratch
  std::vector<cache::ExpertLoad> loads_;
};

}  // namespace moed::model
