// The MoE half of a decoder layer: route, come by the experts wherever they live, compute and
// combine them. One object serves all layers; engine thread only.
//
// Host-driven (Run), experts are computed as they become ready and combined in rank order: each
// (token, rank) output is complete before it is added, so the bits depend neither on the budget nor
// on the order of arrival (docs/DESIGN.md, contract a). Device-driven (IssueOnDevice), the device
// finds the experts itself; the host only issues ops, and learns at the step's end what was used.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "cache/routing_trace.h"
#include "runtime/backend/backend.h"
#include "runtime/model/activations.h"
#include "runtime/model/expert_groups.h"
#include "runtime/model/expert_store.h"
#include "runtime/model/expert_traffic.h"
#include "runtime/model/heartbeat.h"
#include "runtime/model/model_config.h"
#include "runtime/model/residency_link.h"
#include "runtime/model/router_probe.h"
#include "runtime/model/weights.h"

namespace moed::model {

class MoeLayer {
 public:
  // All must outlive this. `heartbeat` is beaten with every group of experts.
  MoeLayer(const ModelConfig& config, int64_t max_tokens, ExpertStore& experts,
           backend::Backend& backend, Heartbeat* heartbeat);

  // Before the first layer of a step. As FollowLastStep.
  absl::Status BeginStep(const StepInput& input);

  // Adds the experts' outputs, and the shared expert's, to activations.residual(tokens).
  // Fails if an expert cannot be read; the step is then lost, the store is not.
  absl::Status Run(int layer, const LayerWeights& weights, int64_t tokens,
                   const Activations& activations);

  // A pass, between whose layers other steps run. To the statistics it is one step, the one in
  // which it ends: its routing is kept till then, so that the steps beside it follow one another.
  // What its layers read meanwhile is admitted by what was known of it before.
  void BeginPass(const StepInput& input);
  // As Run and FollowLastStep.
  absl::Status RunPass(int layer, const LayerWeights& weights, int64_t tokens,
                       const Activations& activations);
  // The statistics follow the layers that have run.
  void EndPass();
  // [chunks] of the pass so far.
  std::span<const ExpertShare> pass_shares() const { return pass_traffic_.shares(); }

  // True if a step of `tokens` can go without the host: BeginDeviceStep, IssueOnDevice for every
  // MoE layer and IssueEndOnDevice, and EndDeviceStep.
  bool OnDevice(int64_t tokens) const;
  // DeviceExperts::PaddedTokens.
  int64_t PaddedTokens(int64_t tokens) const { return experts_.device()->PaddedTokens(tokens); }
  absl::Status BeginDeviceStep(const StepInput& input);
  // As Run, for `rows` padded rows. May be recorded.
  void IssueOnDevice(int layer, const LayerWeights& weights, int64_t rows,
                     const Activations& activations);
  void IssueEndOnDevice() { experts_.device()->FinishStep(); }
  // Waits for the layers' end, not for what was issued behind them. Traffic follows the step.
  // UNAVAILABLE: the CPU's part of the step did not come.
  absl::Status EndDeviceStep(int64_t tokens);
  // Statistics and the cache follow the last step of the device that ended: see ResidencyLink.
  // If nobody has, a device's step does it before it ends, whatever else begins here first.
  absl::Status FollowLastStep() { return link_.has_value() ? link_->Follow() : absl::OkStatus(); }

  // [chunks] of the step so far.
  std::span<const ExpertShare> shares() const { return traffic_.shares(); }

 private:
  backend::RouterStep RouterStepOf(const LayerWeights& weights, const MoeActivations& act,
                                   const backend::Tensor& residual, const backend::Tensor& normed,
                                   const backend::Tensor& ids) const;
  // Route, and the host's view of the choice in groups_.
  absl::Status RouteOnHost(const LayerWeights& weights, const MoeActivations& act, int64_t tokens,
                           const Activations& activations);
  // The rest of the layer; charges `traffic`.
  absl::Status ComputeLayer(int layer, const LayerWeights& weights, const MoeActivations& act,
                            int64_t tokens, const Activations& activations, ExpertTraffic* traffic);
  absl::Status RunExperts(int layer, const backend::Tensor& input, const backend::Tensor& output);
  void AddSharedExpert(const LayerWeights& weights, const MoeActivations& act,
                       const backend::Tensor& input, const backend::Tensor& residual);

  const ModelConfig& config_;
  ExpertStore& experts_;
  backend::Backend& backend_;
  Heartbeat* const heartbeat_;
  ExpertGroups groups_;
  ExpertTraffic traffic_;
  ExpertTraffic pass_traffic_;
  cache::RoutingTrace pass_routing_;  // of the layers of the pass that have run
  LayerTraffic layer_traffic_;
  RouterProbe probe_;
  std::vector<backend::ExpertWork> work_;
  std::optional<ResidencyLink> link_;  // device-driven only
};

}  // namespace moed::model
