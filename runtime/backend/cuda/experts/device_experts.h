// Device-driven experts on CUDA (backend/device_experts.h): slots in VRAM, every expert in mapped
// host memory, the table in between. All device memory is taken when it is created.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/backend/cuda/device/side_stream.h"
#include "runtime/backend/cuda/device/step_tables.h"
#include "runtime/backend/cuda/device/workspace.h"
#include "runtime/backend/cuda/experts/expert_neurons.h"
#include "runtime/backend/cuda/experts/expert_tiles.h"
#include "runtime/backend/cuda/plan/cold_path.h"
#include "runtime/backend/cuda/plan/cold_plan.h"
#include "runtime/backend/cuda/plan/expert_table.h"
#include "runtime/backend/cuda/plan/table_edits.h"
#include "runtime/backend/device_experts.h"

namespace moed::backend {

class CudaDeviceExperts : public DeviceExperts {
 public:
  // `backend` issues the ops that this does not; `steps` describes the step whose ops are being
  // issued; `arrived`: [kMaxSplitGroups] zeros in device memory; `side` takes the copies of
  // FinishStep. All must outlive this. UNIMPLEMENTED, naming it, for a shape that the expert
  // kernels cannot take; RESOURCE_EXHAUSTED: memory.
  static absl::StatusOr<std::unique_ptr<DeviceExperts>> Create(
      const DeviceExpertsOptions& options, Backend& backend, const StepTables& steps, int* arrived,
      cudaStream_t stream, SideStream& side, int multiprocessors);

  int max_tokens() const override { return options_.max_tokens; }
  int64_t PaddedTokens(int64_t tokens) const override;
  absl::Status BeginStep(int64_t tokens) override;
  absl::Status EndStep() override;
  absl::Status Apply(std::span<const ExpertEdit> edits) override;
  Tensor ids(int layer, int64_t tokens) const override;
  void Route(int layer, const RouterStep& step) override;
  void Run(int layer, const Tensor& weights, const Tensor& x, const Tensor& residual) override;
  void FinishStep() override;
  std::span<const int32_t> StepIds(int layer, int64_t tokens) const override;
  std::span<const ExpertUse> Uses(int layer) const override;
  ColdNeurons cold_neurons() const override;
  ColdRates cold_rates() const override;

 private:
  CudaDeviceExperts(const DeviceExpertsOptions& options, Backend& backend, const StepTables& steps,
                    int* arrived, cudaStream_t stream, SideStream& side, int multiprocessors);
  absl::Status Allocate();
  size_t CutTable(std::byte* base);
  size_t CutWork(std::byte* base);
  absl::Status FillTable(size_t table_bytes);
  PlanExpertsArguments PlanArguments(int layer, const Tensor& weights, int rows) const;
  DivideExpertsArguments DivideArguments(int layer, const PlanExpertsArguments& plan) const;
  void Plan(int layer, const Tensor& weights, const Tensor& x);
  // Whether the kernel for a single token takes a step of `rows`.
  bool RunsNeurons(int rows) const;
  void Compute(int layer, int rows, const Tensor& x, const Tensor& residual);
  // Of a step of `rows` tokens.
  int JoinedTasks(int layer, int rows) const;
  // (token, rank) pairs of the largest step.
  size_t StepPairs() const;
  // Where the uses begin in the trace, behind the ids.
  size_t UsesOffset() const;

  DeviceExpertsOptions options_;
  Backend& backend_;
  const StepTables& steps_;
  int* arrived_;
  cudaStream_t stream_;
  SideStream& side_;
  int multiprocessors_;
  LinkAccess link_access_;
  bool two_passes_;  // the device has them
  int total_experts_ = 0;
  int64_t step_tokens_ = 0;
  std::vector<int> first_expert_;  // [layers]
  // The trace, and its copy in pinned memory: ids [layers][max_tokens * k], uses [all experts].
  Workspace device_trace_{WorkspaceMemory::kDevice};
  Workspace host_trace_{WorkspaceMemory::kPinned};
  size_t trace_bytes_ = 0;
  std::byte* device_trace_data_ = nullptr;
  std::byte* host_trace_data_ = nullptr;
  Workspace table_{WorkspaceMemory::kDevice};
  std::vector<ExpertTableLayer> layers_;
  ExpertTableLayer* device_layers_ = nullptr;
  TableEdits edits_;
  Workspace work_{WorkspaceMemory::kDevice};  // of the layer being run
  ExpertTaskList* list_ = nullptr;
  ExpertTask* vram_tasks_ = nullptr;
  ExpertTask* link_tasks_ = nullptr;
  __nv_bfloat16* activations_ = nullptr;
  bool planned_ = false;                     // Route planned the layer that runs next
  TokenChoice choice_;                       // or left it to the expert kernel
  std::unique_ptr<CudaColdPath> cold_path_;  // null: all over the link
  absl::Status finished_;                    // what issuing FinishStep's copies gave
};

}  // namespace moed::backend
