// Experts of backend.h on CUDA: the host lists which expert computes which rows. Few rows an expert
// go through expert_tiles.h, many through expert_products.h or, on Hopper, warpgroup_products.h;
// shapes that their 16-byte loads cannot take are gathered and multiplied by cuBLAS, expert by
// expert. All but the first want bf16: bf12 is unpacked for them (unpack_experts.h), a few experts
// at a time.
#pragma once

#include <cuda_runtime.h>

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cuda/dense/cublas.h"
#include "runtime/backend/cuda/device/list_upload.h"
#include "runtime/backend/cuda/device/workspace.h"
#include "runtime/backend/cuda/prefill/expert_products.h"

namespace moed::backend {

class CudaExperts {
 public:
  // `cublas` must outlive this.
  CudaExperts(const Cublas& cublas, cudaStream_t stream, int multiprocessors);

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
  // Experts of `work` that are unpacked into `bf16` at a time.
  size_t UnpackedAtOnce(const ExpertFormat& bf16, std::span<const ExpertWork> work) const;
  absl::Status Unpack(const ExpertFormat& format, const ExpertFormat& bf16,
                      std::span<const ExpertWork> work, std::byte* target);
  // Sends the tiles, of at most `most_rows`, and rows of `work`, whose bf16 lies in `blobs`, and
  // sets what of `arguments` depends on them. `ends`: behind the last tile of each of `work`.
  absl::Status ListProducts(int most_rows, std::span<const ExpertWork> work,
                            std::span<const std::byte* const> blobs,
                            ExpertProductsArguments* arguments, std::vector<int>* ends);

  const Cublas& cublas_;
  cudaStream_t stream_;
  int multiprocessors_;
  const bool warpgroup_products_;  // the device runs them
  const bool two_passes_;          // likewise (two_pass_experts.h)
  int prepared_hidden_ = 0;
  ListUpload list_;
  Workspace scratch_{WorkspaceMemory::kDevice};
  Workspace unpacked_{WorkspaceMemory::kDevice};
};

}  // namespace moed::backend
