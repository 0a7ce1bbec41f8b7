// The attention ops of backend.h on CUDA: which kernel takes a step, and what it is given. Owned by
// the CUDA backend; engine thread.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cuda/attention/attention.h"
#include "runtime/backend/cuda/attention/fused_attention.h"
#include "runtime/backend/cuda/attention/prepare_qkv.h"
#include "runtime/backend/cuda/attention/warpgroup_attention.h"
#include "runtime/backend/cuda/device/step_tables.h"
#include "runtime/backend/cuda/device/workspace.h"

namespace moed::backend {

class CudaAttention {
 public:
  // `steps` and `arrived` ([kMaxSplitGroups] zeros in device memory) must outlive this.
  CudaAttention(const StepTables& steps, int* arrived, cudaStream_t stream, int multiprocessors)
      : steps_(steps),
        arrived_(arrived),
        stream_(stream),
        multiprocessors_(multiprocessors),
        warpgroups_(PrepareWarpgroupAttention()) {}

  // PrepareQkv, Attention, both, and FusedAttention of backend.h. RESOURCE_EXHAUSTED: no VRAM for
  // what they keep beside; UNIMPLEMENTED: no kernel for the head dimension.
  absl::Status Prepare(const QkPrepare& prepare, const AttentionSpec& spec, const Tensor& q,
                       const Tensor& k, const Tensor& v, const KvLayer& cache);
  absl::Status Attend(const AttentionSpec& spec, const Tensor& q, const KvLayer& cache,
                      const Tensor& out);
  absl::Status PrepareAndAttend(const QkPrepare& prepare, const AttentionSpec& spec,
                                const Tensor& q, const Tensor& k, const Tensor& v,
                                const KvLayer& cache, const Tensor& out);
  bool Fuses(const AttentionHalf& half);
  absl::Status RunFused(const AttentionHalf& half);

  // How often the memory moved that recorded launches name.
  uint64_t moves() const { return scratch_.moves(); }

 private:
  absl::StatusOr<PrepareQkvArguments> PrepareArguments(const QkPrepare& prepare,
                                                       const AttentionSpec& spec,
                                                       const KvLayer& cache);
  AttentionArguments ArgumentsFor(const AttentionSpec& spec, const KvLayer& cache) const;
  // The same with what a step of several tokens wants beside.
  absl::StatusOr<AttentionArguments> SplitArguments(const AttentionSpec& spec, const Tensor& q,
                                                    const KvLayer& cache, const Tensor& out);
  FusedAttentionShape ShapeOf(const AttentionHalf& half) const;
  absl::StatusOr<const float*> DeviceFrequencies(const Tensor& host);
  absl::StatusOr<float*> Scratch(size_t bytes);
  // Zeros before the first launch; each leaves it as the next one needs it.
  absl::StatusOr<std::byte*> FusedExchange(const FusedAttentionShape& shape);

  const StepTables& steps_;
  int* const arrived_;
  const cudaStream_t stream_;
  const int multiprocessors_;
  const bool warpgroups_;  // the device attends to prompts by warpgroup products
  Workspace scratch_{WorkspaceMemory::kDevice};
  // Inverse frequencies by their place in host memory, which the model keeps.
  std::map<const void*, Workspace> frequencies_;
  std::map<FusedAttentionShape, bool> fusible_;
  std::map<FusedAttentionShape, Workspace> exchanges_;
};

}  // namespace moed::backend
