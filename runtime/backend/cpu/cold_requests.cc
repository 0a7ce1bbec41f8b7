#include "runtime/backend/cpu/cold_requests.h"

#include <algorithm>
#include <atomic>

#include "runtime/backend/cpu/spin_wait.h"
#include "runtime/backend/host_memory.h"

namespace moed::backend {
namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

absl::StatusOr<std::unique_ptr<ColdRequests>> ColdRequests::Create(
    const DeviceExpertsOptions& options) {
  std::unique_ptr<ColdRequests> requests(new ColdRequests(options));
  const ColdMailboxSize size = ColdMailboxSizeFor(options);
  absl::StatusOr<Buffer> memory =
      AllocateHostMemory(ColdMailboxBytes(size), "the mailbox of cold experts");
  if (!memory.ok()) return memory.status();
  requests->memory_ = *std::move(memory);
  requests->mailbox_ = CutColdMailbox(size, requests->memory_.data());
  requests->workers_ =
      std::make_unique<ColdWorkers>(ColdWorkersOptionsFor(options), requests->mailbox_);
  return requests;
}

ColdRequests::ColdRequests(const DeviceExpertsOptions& options)
    : path_(options.cold_path),
      hidden_(options.format.hidden()),
      timeout_ms_(options.cold_timeout_ms) {}

uint32_t ColdRequests::link_share() const {
  return path_ == ColdPath::kHybrid ? control_.share() : 0;
}

absl::Status ColdRequests::BeginStep() {
  times_ = {};
  if (status_.ok()) workers_->BeginStep();
  return status_;
}

absl::Status ColdRequests::EndStep() {
  const ColdCpuWork work = workers_->EndStep();
  times_.cpu_cost = work.cost;
  times_.cpu_seconds = work.seconds;
  control_.Observe(times_);
  return status_;
}

// The workers may still be reading a request that was given up.
void ColdRequests::Begin(int layer, int64_t rows) {
  if (!status_.ok()) return;
  mailbox_.request->layer = layer;
  mailbox_.request->rows = static_cast<int32_t>(rows);
  mailbox_.request->num_items = 0;
  num_pairs_ = 0;
}

void ColdRequests::AddItem(int expert, int64_t first_neuron, int64_t num_neurons) {
  if (!status_.ok()) return;
  mailbox_.items[mailbox_.request->num_items++] = {
      .expert = expert,
      .first_neuron = static_cast<int32_t>(first_neuron),
      .num_neurons = static_cast<int32_t>(num_neurons),
      .first_pair = num_pairs_,
      .num_pairs = 0};
}

void ColdRequests::AddPair(int32_t row, float weight) {
  if (!status_.ok()) return;
  mailbox_.pairs[num_pairs_++] = {row, weight};
  ++mailbox_.items[mailbox_.request->num_items - 1].num_pairs;
}

void ColdRequests::Post(const Tensor& x) {
  posted_ = Clock::now();
  if (!status_.ok() || mailbox_.request->num_items == 0) return;
  for (int32_t row = 0; row < mailbox_.request->rows; ++row) {
    std::copy_n(x.As<BFloat16>() + row * hidden_, hidden_, mailbox_.x + row * mailbox_.row_values);
  }
  const std::atomic_ref<uint32_t> sequence(mailbox_.request->sequence);
  sequence.store(++sequence_, std::memory_order_release);
}

void ColdRequests::Collect(int64_t link_cost, const Tensor& residual) {
  if (!status_.ok() || mailbox_.request->num_items == 0) return;
  times_.link_cost += link_cost;
  if (link_cost > 0) {
    times_.link_seconds += std::chrono::duration<double>(Clock::now() - posted_).count();
  }
  if (!WaitForReply()) {
    status_ = ColdReplyMissing(timeout_ms_);
    return;
  }
  const int64_t count = mailbox_.request->rows * hidden_;
  for (int64_t i = 0; i < count; ++i) residual.As<float>()[i] += mailbox_.sums[i];
}

bool ColdRequests::WaitForReply() {
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms_);
  const std::atomic_ref<uint32_t> sequence(mailbox_.reply->sequence);
  SpinWait spin;
  while (sequence.load(std::memory_order_acquire) != sequence_) {
    if (Clock::now() > deadline) return false;
    spin.Pause();
  }
  return true;
}

}  // namespace moed::backend
