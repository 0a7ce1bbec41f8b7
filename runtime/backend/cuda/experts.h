// Experts of backend.h on CUDA: the host lists which expert computes which rows. Few rows an expert
// go through expert_tiles.h; many are gathered and multiplied by cuBLAS straight from the
// neuron-major blob, whose rows it reads through a leading dimension of three hidden sizes.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <span>

#include "absl/status/status.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cuda/workspace.h"

namespace moed::backend {

class CudaExperts {
 public:
  CudaExperts(cublasHandle_t cublas, cudaStream_t stream, int multiprocessors)
      : cublas_(cublas), stream_(stream), multiprocessors_(multiprocessors) {}

  // Shapes as in backend.h. Returns when the work is issued.
  absl::Status Run(const ExpertFormat& format, std::span<const ExpertWork> work, int top_k,
                   const Tensor& x, const Tensor& out);

 private:
  absl::Status RunFewRows(const ExpertFormat& format, std::span<const ExpertWork> work, int top_k,
                          const Tensor& x, const Tensor& out);
  absl::Status RunManyRows(const ExpertFormat& format, const ExpertWork& work, int top_k,
                           const Tensor& x, const Tensor& out);

  cublasHandle_t cublas_;
  cudaStream_t stream_;
  int multiprocessors_;
  int prepared_hidden_ = 0;
  Workspace staging_{WorkspaceMemory::kPinned};
  Workspace tasks_{WorkspaceMemory::kDevice};
  Workspace scratch_{WorkspaceMemory::kDevice};
};

}  // namespace moed::backend
