// The CPU's part of cold experts on CUDA: the device's side of the mailbox (backend/cold_mailbox.h)
// in kernels, and the workers on the other side. Per layer, the planning kernel divides the cold
// experts and lists the CPU's (cold_plan.h); Post hands them over with x; the expert kernels
// compute the rest; Collect waits for the sums and adds them. For a single token the expert kernel
// does all of it (token_mail.cuh). All can be captured in a graph.
//
// Nothing on the device waits longer than DeviceExpertsOptions::cold_timeout_ms in all: after one
// answer that did not come, the others of the step are not waited for. Owned by CudaDeviceExperts;
// engine thread.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/buffer.h"
#include "runtime/backend/cold_mailbox.h"
#include "runtime/backend/cold_workers.h"
#include "runtime/backend/cuda/device/workspace.h"
#include "runtime/backend/cuda/plan/token_mail.h"
#include "runtime/backend/device_experts.h"
#include "runtime/backend/link_share_control.h"

namespace moed::backend {

// What changes from step to step, sent ahead of a step and copied back after it.
struct ColdStep {
  uint32_t link_share = 0;
  uint32_t failed = 0;    // an answer did not come
  int64_t link_cost = 0;  // cold_division.h: of what the link took beside the CPU
  int64_t link_ns = 0;    // how long that took
};

// In device memory.
struct ColdState {
  ColdStep step;
  // Of the layer being run.
  int32_t num_items = 0;
  int32_t link_cost = 0;
  uint32_t sequence = 0;   // of the last request
  uint32_t arrived = 0;    // blocks of a kernel that counts them; 0 between kernels
  uint32_t is_posted = 0;  // within a kernel that posts and reads over the link; 0 between kernels
  uint64_t posted_ns = 0;
};

class CudaColdPath {
 public:
  // RESOURCE_EXHAUSTED: memory.
  static absl::StatusOr<std::unique_ptr<CudaColdPath>> Create(const DeviceExpertsOptions& options,
                                                              cudaStream_t stream);

  // See DeviceExperts. `padded_tokens`: steps of like size share what was measured.
  absl::Status BeginStep(int64_t padded_tokens);
  absl::Status EndStep();

  // See ColdWorkers.
  ColdWorkers& workers() const { return *workers_; }
  // See DeviceExperts.
  ColdRates rates() const;

  // For the planning kernel: device pointers.
  const ColdMailbox& mailbox() const { return mailbox_; }
  ColdState* state() const { return state_; }

  // For the expert kernel of a single token, in place of Post and Collect.
  TokenMail MailOf(int layer) const;

  // x [rows, H] bf16.
  void Post(const __nv_bfloat16* x, int rows);
  // residual [rows, H] += the CPU's sums.
  void Collect(float* residual, int rows);
  // Once the step's last layer has run, on `stream`.
  void CopyBack(cudaStream_t stream);

 private:
  uint64_t timeout_ns() const { return uint64_t{1000000} * options_.cold_timeout_ms; }
  CudaColdPath(const DeviceExpertsOptions& options, cudaStream_t stream)
      : options_(options), stream_(stream) {}
  absl::Status Allocate();

  DeviceExpertsOptions options_;
  cudaStream_t stream_;
  Buffer mailbox_memory_;
  ColdMailbox mailbox_;
  Workspace state_memory_{WorkspaceMemory::kDevice};
  Workspace step_memory_{WorkspaceMemory::kPinned};
  ColdState* state_ = nullptr;
  ColdStep* sent_ = nullptr;    // pinned
  ColdStep* report_ = nullptr;  // pinned
  std::unique_ptr<ColdWorkers> workers_;
  std::map<int64_t, LinkShareControl> controls_;  // by padded tokens
  LinkShareControl* control_ = nullptr;           // of the step
  absl::Status status_;
};

}  // namespace moed::backend
