// RowSampler on CUDA: one upload, one launch, and results that the kernel writes into pinned
// memory. All memory is taken when it is created. Owned by the model; engine thread.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/cuda/workspace.h"
#include "runtime/backend/row_sampler.h"

namespace moed::backend {

class CudaRowSampler : public RowSampler {
 public:
  // UNIMPLEMENTED for a device, a build or a vocabulary that the kernel cannot take;
  // RESOURCE_EXHAUSTED: memory.
  static absl::StatusOr<std::unique_ptr<RowSampler>> Create(const RowSamplerOptions& options,
                                                            cudaStream_t stream);

  int max_rows() const override { return options_.max_rows; }
  int max_adjustments() const override { return options_.max_rows * kAdjustmentsPerRow; }
  // An error is the next Synchronize's.
  void Sample(const Tensor& logits, std::span<const RowSampling> rows,
              std::span<const LogitAdjustment> adjustments) override;
  std::span<const SampledRow> results() const override { return {results_, num_results_}; }

 private:
  CudaRowSampler(const RowSamplerOptions& options, cudaStream_t stream)
      : options_(options), stream_(stream) {}
  absl::Status Allocate();

  RowSamplerOptions options_;
  cudaStream_t stream_;
  Workspace staging_memory_{WorkspaceMemory::kPinned};
  Workspace device_memory_{WorkspaceMemory::kDevice};
  Workspace result_memory_{WorkspaceMemory::kPinned};
  std::byte* staging_ = nullptr;  // rows, then adjustments
  std::byte* device_ = nullptr;   // its copy
  SampledRow* results_ = nullptr;
  size_t num_results_ = 0;
};

}  // namespace moed::backend
