// Device-driven experts (backend/device_experts.h) where the device is the CPU: what the CUDA
// backend does in kernels, in order and at once. It lets every test of the device-driven path run
// without a GPU; serving on the CPU is host-driven.
#pragma once

#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cold_division.h"
#include "runtime/backend/cpu/cold_requests.h"
#include "runtime/backend/device_experts.h"

namespace moed::backend {

class CpuDeviceExperts : public DeviceExperts {
 public:
  // `backend` computes the experts and must outlive this. RESOURCE_EXHAUSTED: memory.
  static absl::StatusOr<std::unique_ptr<DeviceExperts>> Create(const DeviceExpertsOptions& options,
                                                               Backend& backend);

  int max_tokens() const override { return options_.max_tokens; }
  int64_t PaddedTokens(int64_t tokens) const override { return tokens; }
  absl::Status BeginStep(int64_t tokens) override;
  absl::Status EndStep() override;
  absl::Status Apply(std::span<const ExpertEdit> edits) override;
  Tensor ids(int layer, int64_t tokens) const override;
  void Route(int layer, const RouterStep& step) override;
  void Run(int layer, const Tensor& weights, const Tensor& x, const Tensor& residual) override;
  void FinishStep() override {}
  std::span<const int32_t> StepIds(int layer, int64_t tokens) const override;
  std::span<const ExpertUse> Uses(int layer) const override { return layers_[layer].uses; }
  ColdNeurons cold_neurons() const override;
  ColdRates cold_rates() const override;

 private:
  struct Entry {
    int32_t slot = -1;
    uint32_t generation = 0;
    uint32_t fill_allowed = 0;  // 0: no; else 1 and how often it waited since (FillFits)
  };
  struct OfferedSlot {
    int32_t slot = -1;
    uint32_t generation = 0;
    int32_t expert = -1;  // that may lie in it; -1: none
  };
  struct Layer {
    std::vector<Entry> entries;  // [experts]
    std::vector<OfferedSlot> offered;
    std::vector<ExpertUse> uses;         // [experts]
    std::vector<int32_t> ids;            // [max_tokens * k]
    const std::byte* experts = nullptr;  // in host memory
  };

  CpuDeviceExperts(const DeviceExpertsOptions& options, Backend& backend);
  void ApplyOne(const ExpertEdit& edit);
  bool MayTakeOffer(const Layer& layer) const;
  // Marks the use in the layer's trace and returns where the weights lie now.
  const std::byte* Place(Layer& layer, int expert, absl::FunctionRef<bool(const Entry&)> fits);
  int64_t ColdCostOf(const Layer& layer) const;
  // Lists every expert that was chosen as work of the device or of the CPU; returns the cost of
  // the cold ones that the device takes.
  int64_t DivideWork(Layer& layer, const Tensor& weights);
  void Divide(Layer& layer, int expert, int link_tiles, const Tensor& weights);

  DeviceExpertsOptions options_;
  Backend& backend_;
  std::vector<Layer> layers_;
  int64_t step_tokens_ = 0;
  std::unique_ptr<ColdRequests> cold_requests_;  // null: all over the link
  std::vector<float> output_;                    // [max_tokens * k, H]
  // Of the layer being run.
  std::vector<std::vector<int32_t>> rows_;  // of each expert
  std::vector<ExpertWork> work_;
  ExpertWork cut_;           // an expert of which the device computes the first
  int64_t cut_neurons_ = 0;  // neurons; 0: none
  std::vector<int> cold_experts_;
};

}  // namespace moed::backend
