#include "runtime/backend/cuda/plan/cold_path.h"

#include <algorithm>

#include "runtime/backend/cuda/device/cuda_status.h"
#include "runtime/backend/cuda/device/pinned_memory.h"
#include "runtime/backend/cuda/plan/cold_collect.cuh"
#include "runtime/backend/cuda/plan/cold_post.cuh"

namespace moed::backend {
namespace {

constexpr int kThreads = 256;
constexpr int kPostBlocks = 8;
constexpr int kCollectBlocks = 16;

__global__ void __launch_bounds__(kThreads)
    PostRequest(ColdMailbox mailbox, const __nv_bfloat16* x, int rows, ColdState* state) {
  if (state->num_items == 0 || state->step.failed != 0) return;
  CopyIntoMailbox(mailbox, x, rows, blockIdx.x * kThreads + threadIdx.x, gridDim.x * kThreads);
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence_system();
  if (atomicAdd(&state->arrived, 1) != gridDim.x - 1) return;
  state->arrived = 0;
  PostSequence(mailbox, state);
}

__global__ void __launch_bounds__(kThreads)
    CollectReply(ColdMailbox mailbox, float* residual, int rows, ColdState* state,
                 uint64_t timeout_ns) {
  __shared__ bool answered;
  if (state->num_items == 0) return;
  if (threadIdx.x == 0) {
    if (blockIdx.x == 0 && state->link_cost > 0) CountLink(state, state->link_cost);
    answered = WaitForReply(mailbox, state, timeout_ns);
  }
  __syncthreads();
  if (!answered) return;
  const int count = rows * static_cast<int>(mailbox.hidden / 4);
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < count; i += gridDim.x * kThreads) {
    const float4 sum = LoadFromHost(mailbox.sums + 4 * size_t(i));
    float4& target = reinterpret_cast<float4*>(residual)[i];
    target = make_float4(target.x + sum.x, target.y + sum.y, target.z + sum.z, target.w + sum.w);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaColdPath>> CudaColdPath::Create(
    const DeviceExpertsOptions& options, cudaStream_t stream) {
  std::unique_ptr<CudaColdPath> path(new CudaColdPath(options, stream));
  if (absl::Status status = path->Allocate(); !status.ok()) return status;
  path->workers_ = std::make_unique<ColdWorkers>(ColdWorkersOptionsFor(options), path->mailbox_);
  return path;
}

absl::Status CudaColdPath::Allocate() {
  const ColdMailboxSize size = ColdMailboxSizeFor(options_);
  absl::StatusOr<Buffer> memory =
      AllocatePinnedMemory(ColdMailboxBytes(size), "the mailbox of cold experts");
  if (!memory.ok()) return memory.status();
  mailbox_memory_ = *std::move(memory);
  mailbox_ = CutColdMailbox(size, mailbox_memory_.data());
  const absl::StatusOr<std::byte*> state = state_memory_.Reserve(sizeof(ColdState));
  if (!state.ok()) return state.status();
  state_ = reinterpret_cast<ColdState*>(*state);
  const absl::StatusOr<std::byte*> steps = step_memory_.Reserve(2 * sizeof(ColdStep));
  if (!steps.ok()) return steps.status();
  sent_ = reinterpret_cast<ColdStep*>(*steps);
  report_ = sent_ + 1;
  *sent_ = *report_ = {};
  absl::Status status = CudaStatus(cudaMemsetAsync(state_, 0, sizeof(ColdState), stream_),
                                   "clearing the state of the cold path");
  status.Update(CudaStatus(cudaStreamSynchronize(stream_), "clearing the state of the cold path"));
  return status;
}

absl::Status CudaColdPath::BeginStep(int64_t padded_tokens) {
  if (!status_.ok()) return status_;
  control_ = &controls_[padded_tokens];
  *sent_ = {};
  if (options_.cold_path == ColdPath::kHybrid) sent_->link_share = control_->share();
  workers_->BeginStep();
  return CudaStatus(
      cudaMemcpyAsync(&state_->step, sent_, sizeof(ColdStep), cudaMemcpyHostToDevice, stream_),
      "sending the link's share of cold experts");
}

absl::Status CudaColdPath::EndStep() {
  const ColdCpuWork work = workers_->EndStep();
  if (status_.ok() && report_->failed != 0) status_ = ColdReplyMissing(options_.cold_timeout_ms);
  if (control_ != nullptr) {
    control_->Observe({.link_cost = report_->link_cost,
                       .link_seconds = 1e-9 * static_cast<double>(report_->link_ns),
                       .cpu_cost = work.cost,
                       .cpu_seconds = work.seconds});
  }
  return status_;
}

ColdRates CudaColdPath::rates() const {
  return control_ != nullptr ? control_->rates(options_.format) : ColdRates();
}

TokenMail CudaColdPath::MailOf(int layer) const {
  return {.state = state_, .mailbox = mailbox_, .layer = layer, .timeout_ns = timeout_ns()};
}

void CudaColdPath::Post(const __nv_bfloat16* x, int rows) {
  PostRequest<<<kPostBlocks, kThreads, 0, stream_>>>(mailbox_, x, rows, state_);
}

void CudaColdPath::Collect(float* residual, int rows) {
  // Each block looks for the answer itself, so no more than have something to add.
  const auto chunks = static_cast<int>(rows * mailbox_.hidden / 4);
  const int blocks = std::clamp((chunks + kThreads - 1) / kThreads, 1, kCollectBlocks);
  CollectReply<<<blocks, kThreads, 0, stream_>>>(mailbox_, residual, rows, state_, timeout_ns());
}

void CudaColdPath::CopyBack(cudaStream_t stream) {
  cudaMemcpyAsync(report_, &state_->step, sizeof(ColdStep), cudaMemcpyDeviceToHost, stream);
}

}  // namespace moed::backend
