// Experts of backend.h on CUDA: the host lists which expert computes which rows. Few rows an expert
// go through expert_tiles.h, many through expert_products.h; shapes that their 16-byte loads cannot
// take are gathered and multiplied by cuBLAS, expert by expert. The latter two want bf16: bf12 is
// unpacked for them (unpack_experts.h), a few experts at a time.
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "absl/status/status.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cuda/cublas.h"
#include "runtime/backend/cuda/workspace.h"

namespace moed::backend {

class CudaExperts {
 public:
  // `cublas` must outlive this.
  CudaExperts(const Cublas& cublas, cudaStream_t stream, int multiprocessors)
      : cublas_(cublas), stream_(stream), multiprocessors_(multiprocessors) {}

  // Shapes as in backend.h. Returns when the work is issued.
  absl::Status Run(const ExpertFormat& format, std::span<const ExpertWork> work, int top_k,
                   const Tensor& x, const Tensor& out);

 private:
  absl::Status RunFewRows(const ExpertFormat& format, std::span<const ExpertWork> work, int top_k,
                          const Tensor& x, const Tensor& out);
  absl::Status RunManyRows(const ExpertFormat& format, std::span<const ExpertWork> work, int top_k,
                           const Tensor& x, const Tensor& out);
  absl::Status RunAnyShape(const ExpertFormat& format, const ExpertWork& work, int top_k,
                           const Tensor& x, const Tensor& out);
  absl::Status RunEachAnyShape(const ExpertFormat& format, std::span<const ExpertWork> work,
                               int top_k, const Tensor& x, const Tensor& out);
  // Memory for as many of `experts` in `bf16` as are unpacked at a time; null if they are bf16.
  absl::StatusOr<std::byte*> ReserveUnpacked(const ExpertFormat& format, const ExpertFormat& bf16,
                                             size_t experts);
  absl::Status Unpack(const ExpertFormat& format, const ExpertFormat& bf16,
                      std::span<const ExpertWork> work, std::byte* target);
  // Where the host may write `bytes` for the device; Upload then copies them to tasks_.
  absl::StatusOr<std::byte*> Stage(size_t bytes);
  absl::StatusOr<std::byte*> Upload(size_t bytes);

  const Cublas& cublas_;
  cudaStream_t stream_;
  int multiprocessors_;
  int prepared_hidden_ = 0;
  Workspace staging_{WorkspaceMemory::kPinned};
  Workspace tasks_{WorkspaceMemory::kDevice};
  Workspace scratch_{WorkspaceMemory::kDevice};
  Workspace unpacked_{WorkspaceMemory::kDevice};
};

}  // namespace moed::backend
