// The MoE half of a decoder layer, host-driven: route, come by the experts wherever they live,
// compute them as they become ready, combine in rank order. Each (token, rank) output is complete
// before it is added, so the bits depend neither on the budget nor on the order of arrival
// (docs/DESIGN.md, contract a). One object serves all layers; engine thread only.
#pragma once

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "runtime/backend/backend.h"
#include "runtime/model/activations.h"
#include "runtime/model/expert_groups.h"
#include "runtime/model/expert_store.h"
#include "runtime/model/expert_traffic.h"
#include "runtime/model/model_config.h"
#include "runtime/model/weights.h"

namespace moed::model {

class MoeLayer {
 public:
  // All must outlive this.
  MoeLayer(const ModelConfig& config, int64_t max_tokens, ExpertStore& experts,
           backend::Backend& backend);

  // Before the first layer of a step.
  void BeginStep(const StepInput& input);

  // Adds the experts' outputs, and the shared expert's, to activations.residual(tokens).
  // Fails if an expert cannot be read; the step is then lost, the store is not.
  absl::Status Run(int layer, const LayerWeights& weights, int64_t tokens,
                   const Activations& activations);

  // [chunks] of the step so far.
  std::span<const ExpertShare> shares() const { return traffic_.shares(); }

 private:
  absl::Status RunExperts(int layer, const backend::Tensor& input, const backend::Tensor& output);
  void AddSharedExpert(const LayerWeights& weights, const MoeActivations& act,
                       const backend::Tensor& input, const backend::Tensor& residual);

  const ModelConfig& config_;
  ExpertStore& experts_;
  backend::Backend& backend_;
  ExpertGroups groups_;
  ExpertTraffic traffic_;
  LayerTraffic layer_traffic_;
  std::vector<backend::ExpertWork> work_;
};

}  // namespace moed::model
