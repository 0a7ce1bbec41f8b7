#include "runtime/model/moe_layer.h"

#include "runtime/model/mlp.h"

namespace moed::model {

using backend::Tensor;

MoeLayer::MoeLayer(const ModelConfig& config, int64_t max_tokens, ExpertStore& experts,
                   backend::Backend& backend)
    : config_(config),
      experts_(experts),
      backend_(backend),
      groups_(config.router.num_experts, config.router.top_k, max_tokens),
      traffic_(static_cast<int64_t>(experts.format().blob_bytes())) {}

void MoeLayer::BeginStep(const StepInput& input) {
  experts_.cache().BeginStep();
  traffic_.BeginStep(input);
}

absl::Status MoeLayer::Run(int layer, const LayerWeights& weights, int64_t tokens,
                           const Activations& activations) {
  RegionCutter phase = activations.Phase();
  const MoeActivations act = MoeActivations::Cut(config_, tokens, &phase);
  const Tensor residual = activations.residual(tokens);
  const Tensor normed = activations.normed(tokens);
  const Tensor ids = activations.expert_ids(tokens);

  backend_.RmsNorm(residual, weights.ffn_norm.view, config_.norm_epsilon, normed, act.router_input);
  backend_.LinearF32(weights.router.view, act.router_input, act.router_logits);
  backend_.Route(config_.router, act.router_logits, ids, act.weights);
  if (absl::Status status = backend_.Synchronize(); !status.ok()) return status;

  groups_.Build({ids.As<int32_t>(), static_cast<size_t>(ids.num_elements())});
  experts_.cache().Observe(layer, traffic_.Loads(groups_));
  if (absl::Status status = RunExperts(layer, normed, act.expert_output); !status.ok()) {
    return status;
  }
  traffic_.Charge(groups_, layer_traffic_);
  backend_.CombineExperts(act.expert_output, act.weights, residual);
  if (config_.shared_intermediate > 0) AddSharedExpert(weights, act, normed, residual);
  return absl::OkStatus();
}

absl::Status MoeLayer::RunExperts(int layer, const Tensor& input, const Tensor& output) {
  absl::Status device_status;
  const auto compute = [&](std::span<const ExpertStore::Ready> ready) {
    work_.clear();
    for (const ExpertStore::Ready& expert : ready) {
      work_.push_back({.blob = expert.blob, .rows = groups_.rows(expert.expert)});
    }
    backend_.Experts(experts_.format(), work_, config_.router.top_k, input, output);
    // The slots may be given to other experts as soon as this returns.
    device_status.Update(backend_.Synchronize());
  };
  absl::Status status = experts_.ForEach(layer, groups_.experts(), compute, &layer_traffic_);
  status.Update(device_status);
  return status;
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
