#include "runtime/model/moe_layer.h"

#include "runtime/model/mlp.h"

namespace moed::model {

using backend::Tensor;

MoeLayer::MoeLayer(const ModelConfig& config, int64_t max_tokens, ExpertStore& experts,
                   backend::Backend& backend, Heartbeat* heartbeat)
    : config_(config),
      experts_(experts),
      backend_(backend),
      heartbeat_(heartbeat),
      groups_(config.router.num_experts, config.router.top_k, max_tokens),
      traffic_(static_cast<int64_t>(experts.format().blob_bytes())),
      pass_traffic_(static_cast<int64_t>(experts.format().blob_bytes())) {
  if (experts.device() != nullptr) link_.emplace(experts.cache(), *experts.device());
}

absl::Status MoeLayer::BeginStep(const StepInput& input) {
  if (absl::Status status = FollowLastStep(); !status.ok()) return status;
  experts_.cache().BeginStep();
  probe_.BeginStep();
  traffic_.BeginStep(input);
  experts_.BeginPrompt(static_cast<int64_t>(input.token_ids.size()) * config_.router.top_k);
  return absl::OkStatus();
}

absl::Status MoeLayer::Run(int layer, const LayerWeights& weights, int64_t tokens,
                           const Activations& activations) {
  RegionCutter phase = activations.Phase();
  const MoeActivations act = MoeActivations::Cut(config_, tokens, &phase);
  absl::Status status = RouteOnHost(weights, act, tokens, activations);
  if (!status.ok()) return status;
  experts_.cache().Observe(layer, traffic_.Loads(groups_));
  absl::Status probed = probe_.Look(layer, act.router_logits, backend_, &experts_.cache());
  if (!probed.ok()) return probed;
  return ComputeLayer(layer, weights, act, tokens, activations, &traffic_);
}

void MoeLayer::BeginPass(const StepInput& input) {
  pass_traffic_.BeginStep(input);
  pass_routing_.layers.clear();
  experts_.BeginPrompt(static_cast<int64_t>(input.token_ids.size()) * config_.router.top_k);
}

absl::Status MoeLayer::RunPass(int layer, const LayerWeights& weights, int64_t tokens,
                               const Activations& activations) {
  if (absl::Status status = FollowLastStep(); !status.ok()) return status;
  RegionCutter phase = activations.Phase();
  const MoeActivations act = MoeActivations::Cut(config_, tokens, &phase);
  absl::Status status = RouteOnHost(weights, act, tokens, activations);
  if (!status.ok()) return status;
  const std::span<const cache::ExpertLoad> loads = pass_traffic_.Loads(groups_);
  pass_routing_.layers.push_back({.layer = layer, .experts = {loads.begin(), loads.end()}});
  return ComputeLayer(layer, weights, act, tokens, activations, &pass_traffic_);
}

void MoeLayer::EndPass() {
  if (pass_routing_.layers.empty()) return;
  FollowLastStep().IgnoreError();  // the next step fails with it
  experts_.cache().BeginStep();
  for (const cache::LayerRouting& routing : pass_routing_.layers) {
    experts_.cache().Observe(routing.layer, routing.experts);
  }
  pass_routing_.layers.clear();
}

absl::Status MoeLayer::RouteOnHost(const LayerWeights& weights, const MoeActivations& act,
                                   int64_t tokens, const Activations& activations) {
  const Tensor ids = activations.expert_ids(tokens);
  backend_.NormRoute(
      RouterStepOf(weights, act, activations.residual(tokens), activations.normed(tokens), ids));
  if (absl::Status status = backend_.Synchronize(); !status.ok()) return status;
  groups_.Build({ids.As<int32_t>(), static_cast<size_t>(ids.num_elements())});
  return absl::OkStatus();
}

absl::Status MoeLayer::ComputeLayer(int layer, const LayerWeights& weights,
                                    const MoeActivations& act, int64_t tokens,
                                    const Activations& activations, ExpertTraffic* traffic) {
  const Tensor residual = activations.residual(tokens);
  const Tensor normed = activations.normed(tokens);
  if (absl::Status status = RunExperts(layer, normed, act.expert_output); !status.ok()) {
    return status;
  }
  backend_.CombineExperts(act.expert_output, act.weights, residual);
  if (config_.shared_intermediate > 0) AddSharedExpert(weights, act, normed, residual);
  traffic->Charge(groups_, layer_traffic_);
  return absl::OkStatus();
}

bool MoeLayer::OnDevice(int64_t tokens) const {
  return link_.has_value() && tokens <= experts_.device()->max_tokens();
}

absl::Status MoeLayer::BeginDeviceStep(const StepInput& input) {
  traffic_.BeginStep(input);
  if (absl::Status status = link_->BeginStep(); !status.ok()) return status;
  return experts_.device()->BeginStep(static_cast<int64_t>(input.token_ids.size()));
}

void MoeLayer::IssueOnDevice(int layer, const LayerWeights& weights, int64_t rows,
                             const Activations& activations) {
  RegionCutter phase = activations.Phase();
  const MoeActivations act = MoeActivations::Cut(config_, rows, &phase);
  const Tensor residual = activations.residual(rows);
  const Tensor normed = activations.normed(rows);
  const Tensor ids = experts_.device()->ids(layer, rows);

  experts_.device()->Route(layer, RouterStepOf(weights, act, residual, normed, ids));
  experts_.device()->Run(layer, act.weights, normed, residual);
  if (config_.shared_intermediate > 0) AddSharedExpert(weights, act, normed, residual);
}

absl::Status MoeLayer::EndDeviceStep(int64_t tokens) {
  if (absl::Status status = FollowLastStep(); !status.ok()) return status;
  if (absl::Status status = experts_.device()->EndStep(); !status.ok()) return status;
  for (int layer = 0; layer < config_.num_layers(); ++layer) {
    if (!config_.layers[layer].is_moe) continue;
    groups_.Build(experts_.device()->StepIds(layer, tokens));
    link_->AddLayer(layer, groups_, traffic_.Loads(groups_), experts_.format(), &layer_traffic_);
    traffic_.Charge(groups_, layer_traffic_);
  }
  link_->EndStep();
  return absl::OkStatus();
}

backend::RouterStep MoeLayer::RouterStepOf(const LayerWeights& weights, const MoeActivations& act,
                                           const Tensor& residual, const Tensor& normed,
                                           const Tensor& ids) const {
  return {.spec = config_.router,
          .x = residual,
          .norm_weight = weights.ffn_norm.view,
          .norm_epsilon = config_.norm_epsilon,
          .router = weights.router.view,
          .normed = normed,
          .normed_f32 = act.router_input,
          .logits = act.router_logits,
          .ids = ids,
          .weights = act.weights};
}

absl::Status MoeLayer::RunExperts(int layer, const Tensor& input, const Tensor& output) {
  const auto compute = [&](std::span<const ExpertStore::Ready> ready) {
    heartbeat_->Beat();
    work_.clear();
    for (const ExpertStore::Ready& expert : ready) {
      work_.push_back({.blob = expert.blob, .rows = groups_.rows(expert.expert)});
    }
    backend_.Experts(experts_.format(), work_, config_.router.top_k, input, output);
  };
  return experts_.ForEach(layer, groups_.experts(), compute, &layer_traffic_);
}

void MoeLayer::AddSharedExpert(const LayerWeights& weights, const MoeActivations& act,
                               const Tensor& input, const Tensor& residual) {
  if (config_.shared_gate) {
    backend_.LinearF32(weights.shared_gate.view, act.router_input, act.shared_gate);
  }
  RunMlp(weights.mlp, act.shared, input, act.shared_output, /*accumulate=*/false, backend_);
  backend_.AddShared(act.shared_output, act.shared_gate, residual);
}

}  // namespace moed::model
