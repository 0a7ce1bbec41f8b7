// RowSampler on CUDA: one upload, beside what computes the logits, one launch, and results that the
// kernel writes into pinned memory. All memory is taken when it is created. Owned by the model;
// engine thread.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/cuda/device/cuda_status.h"
#include "runtime/backend/cuda/device/workspace.h"
#include "runtime/backend/row_sampler.h"

namespace moed::backend {

class CudaRowSampler : public RowSampler {
 public:
  // UNIMPLEMENTED for a device, a build or a vocabulary that the kernel cannot take;
  // RESOURCE_EXHAUSTED: memory.
  // `error`, the first of the backend's ops, must outlive this.
  static absl::StatusOr<std::unique_ptr<RowSampler>> Create(const RowSamplerOptions& options,
                                                            const absl::Status& error,
                                                            cudaStream_t stream);

  int max_rows() const override { return options_.max_rows; }
  int max_adjustments() const override { return options_.max_rows * kAdjustmentsPerRow; }
  // An error is Wait's.
  void Sample(const Tensor& logits, std::span<const RowSampling> rows,
              std::span<const LogitAdjustment> adjustments) override;
  absl::Status Wait() override;
  std::span<const SampledRow> results() const override { return {results_, num_results_}; }

 private:
  CudaRowSampler(const RowSamplerOptions& options, const absl::Status& error, cudaStream_t stream)
      : options_(options), error_(error), stream_(stream) {}
  absl::Status Allocate();

  RowSamplerOptions options_;
  const absl::Status& error_;
  cudaStream_t stream_;
  CudaStream upload_stream_;
  CudaEvent uploaded_;
  CudaEvent sampled_;
  Workspace staging_memory_{WorkspaceMemory::kPinned};
  Workspace device_memory_{WorkspaceMemory::kDevice};
  Workspace result_memory_{WorkspaceMemory::kPinned};
  std::byte* staging_ = nullptr;  // rows, then adjustments
  std::byte* device_ = nullptr;   // its copy
  SampledRow* results_ = nullptr;
  size_t num_results_ = 0;
};

}  // namespace moed::backend
