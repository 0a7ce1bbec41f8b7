// The device's side of the mailbox (cold_mailbox.h) where the device is the CPU, with the workers
// on the other side: what the CUDA backend does in kernels, so that tests hold the CPU's part of
// cold experts to the same answers without a GPU. Owned by CpuDeviceExperts; engine thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/backend/buffer.h"
#include "runtime/backend/cold_mailbox.h"
#include "runtime/backend/cold_workers.h"
#include "runtime/backend/device_experts.h"
#include "runtime/backend/link_share_control.h"
#include "runtime/backend/tensor.h"

namespace moed::backend {

class ColdRequests {
 public:
  // RESOURCE_EXHAUSTED: memory.
  static absl::StatusOr<std::unique_ptr<ColdRequests>> Create(const DeviceExpertsOptions& options);

  // What the link takes of the step's cold experts.
  uint32_t link_share() const;

  // UNAVAILABLE, for ever: an answer did not come in time. EndStep corrects the share.
  absl::Status BeginStep();
  absl::Status EndStep();

  // See ColdWorkers.
  ColdWorkers& workers() const { return *workers_; }
  // See LinkShareControl.
  ColdRates rates(const ExpertFormat& format) const { return control_.rates(format); }

  // Begins the request of a layer; after an error nothing does anything. Then one AddItem for each
  // expert, its AddPair, and Post.
  void Begin(int layer, int64_t rows);
  void AddItem(int expert, int64_t first_neuron, int64_t num_neurons);
  void AddPair(int32_t row, float weight);
  // Posts it, unless it is empty. x [rows, H] bf16.
  void Post(const Tensor& x);
  // Waits for the answer to what was posted and adds the sums to residual [rows, H]. `link_cost`:
  // what the device computed meanwhile (cold_division.h).
  void Collect(int64_t link_cost, const Tensor& residual);

 private:
  explicit ColdRequests(const DeviceExpertsOptions& options);
  bool WaitForReply();

  ColdPath path_;
  int64_t hidden_;
  int timeout_ms_;
  Buffer memory_;
  ColdMailbox mailbox_;
  std::unique_ptr<ColdWorkers> workers_;
  LinkShareControl control_;
  ColdStepTimes times_;
  uint32_t sequence_ = 0;
  int32_t num_pairs_ = 0;
  std::chrono::steady_clock::time_point posted_;
  absl::Status status_;
};

}  // namespace moed::backend
