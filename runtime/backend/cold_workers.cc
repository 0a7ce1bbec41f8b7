#include "runtime/backend/cold_workers.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/backend/cold_division.h"
#include "runtime/backend/cpu/cold_experts.h"
#include "runtime/backend/cpu/cold_fetch.h"
#include "runtime/backend/cpu/cold_forecast.h"
#include "runtime/backend/cpu/cpu_count.h"
#include "runtime/backend/cpu/spin_wait.h"
#include "runtime/backend/cpu/thread_pool.h"

namespace moed::backend {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kSpinTime(1000);

int64_t CostOf(const ColdMailbox& mailbox) {
  int64_t cost = 0;
  for (int32_t i = 0; i < mailbox.request->num_items; ++i) {
    const ColdItem& item = mailbox.items[i];
    cost += ColdCost(ColdTiles(item.num_neurons), item.num_pairs);
  }
  return cost;
}

}  // namespace

ColdMailboxSize ColdMailboxSizeFor(const DeviceExpertsOptions& options) {
  const std::vector<int>& experts = options.experts_per_layer;
  return {.max_rows = options.max_tokens,
          .max_items = experts.empty() ? 0 : *std::max_element(experts.begin(), experts.end()),
          .max_pairs = int64_t{options.max_tokens} * options.top_k,
          .row_values = options.format.row_values(),
          .hidden = options.format.hidden()};
}

ColdWorkersOptions ColdWorkersOptionsFor(const DeviceExpertsOptions& options) {
  ColdWorkersOptions workers{.format = options.format,
                             .layers = {},
                             .num_threads = 1,
                             .experts_per_layer = options.experts_per_layer,
                             .top_k = options.top_k,
                             .next_routers = options.next_routers};
  const std::byte* layer = options.host_experts;
  for (const int experts : options.experts_per_layer) {
    workers.layers.push_back(layer);
    layer += experts * options.format.blob_bytes();
  }
  workers.num_threads = options.cold_threads > 0 ? options.cold_threads : DefaultColdThreads();
  return workers;
}

absl::Status ColdReplyMissing(int timeout_ms) {
  return absl::UnavailableError(
      absl::StrCat("the CPU's part of a step did not come within ", timeout_ms,
                   " ms: its threads were stopped or had no CPU; give the process the CPUs that it "
                   "asks for, or use --cold-path link"));
}

ColdWorkers::ColdWorkers(ColdWorkersOptions options, const ColdMailbox& mailbox)
    : options_(std::move(options)),
      mailbox_(mailbox),
      forecast_(std::make_unique<ColdForecast>(options_.next_routers, options_.experts_per_layer,
                                               options_.top_k, options_.format.hidden())),
      watcher_([this] { Watch(); }) {}

ColdWorkers::~ColdWorkers() {
  stopping_.store(true);
  wake_ups_.fetch_add(1);
  wake_ups_.notify_all();
  watcher_.join();
}

void ColdWorkers::BeginStep() {
  cost_.store(0, std::memory_order_relaxed);
  nanoseconds_.store(0, std::memory_order_relaxed);
  in_step_.store(true);
  wake_ups_.fetch_add(1);
  wake_ups_.notify_all();
}

ColdCpuWork ColdWorkers::EndStep() {
  in_step_.store(false);
  return {.cost = cost_.load(std::memory_order_relaxed),
          .seconds = 1e-9 * static_cast<double>(nanoseconds_.load(std::memory_order_relaxed))};
}

void ColdWorkers::Follow(std::span<const ExpertEdit> edits) { forecast_->Follow(edits); }

void ColdWorkers::FollowUses(int layer, std::span<const int32_t> ids,
                             std::span<const ExpertUse> uses) {
  for (const int32_t id : ids) {
    if (uses[id].kind == ExpertUseKind::kFilled) forecast_->FollowFill(layer, id, uses[id].slot);
  }
}

ColdNeurons ColdWorkers::neurons() const {
  return {.computed = neurons_computed_.load(std::memory_order_relaxed),
          .fetched_ahead = neurons_fetched_ahead_.load(std::memory_order_relaxed)};
}

bool ColdWorkers::HasRequest() const {
  const std::atomic_ref<uint32_t> sequence(mailbox_.request->sequence);
  return sequence.load(std::memory_order_acquire) != answered_;
}

void ColdWorkers::Watch() {
  // Here, since the thread that makes a pool is its worker 0.
  pool_ = std::make_unique<ThreadPool>(options_.num_threads, kSpinTime);
  experts_ = std::make_unique<ColdExperts>(*pool_, options_.format);
  fetch_ = std::make_unique<ColdFetch>(*forecast_, options_.format, options_.layers,
                                       options_.num_threads);
  auto last_step = Clock::now();
  SpinWait spin;
  while (!stopping_.load(std::memory_order_relaxed)) {
    if (in_step_.load(std::memory_order_relaxed)) {
      if (HasRequest()) {
        Answer();
        spin.Reset();
      }
      last_step = Clock::now();
    } else if (Clock::now() - last_step > kSpinTime) {
      ParkUntilStep();
    }
    spin.Pause();
  }
}

void ColdWorkers::Answer() {
  const auto start = Clock::now();
  ++answered_;
  const auto answer = [&] {
    cost_.fetch_add(CostOf(mailbox_), std::memory_order_relaxed);
    const auto taken = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start);
    nanoseconds_.fetch_add(taken.count(), std::memory_order_relaxed);
    const std::atomic_ref<uint32_t> sequence(mailbox_.reply->sequence);
    sequence.store(answered_, std::memory_order_release);
  };
  const auto has_other_work = [&] {
    return HasRequest() || !in_step_.load(std::memory_order_relaxed) ||
           stopping_.load(std::memory_order_relaxed);
  };
  const ColdNeurons neurons = experts_->Run(options_.layers[mailbox_.request->layer], mailbox_,
                                            *fetch_, answer, has_other_work);
  neurons_computed_.fetch_add(neurons.computed, std::memory_order_relaxed);
  neurons_fetched_ahead_.fetch_add(neurons.fetched_ahead, std::memory_order_relaxed);
}

// A step that begins meanwhile changes wake_ups_ after in_step_, so it is either seen here or
// wakes.
void ColdWorkers::ParkUntilStep() {
  const uint32_t seen = wake_ups_.load();
  if (in_step_.load() || stopping_.load()) return;
  wake_ups_.wait(seen);
}

}  // namespace moed::backend
