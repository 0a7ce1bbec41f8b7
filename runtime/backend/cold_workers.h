// The host's threads that compute their part of a device's cold experts within a step
// (cold_mailbox.h): one watches the mailbox and shares each request out among the others.
//
// Between BeginStep and EndStep, and only then, it looks for requests; 1 ms after the last step it
// parks, and so does any other thread that had nothing to do for as long. Between requests of few
// rows they fetch what they guess the next one to ask for (cold_fetch.h). The device must not wait
// for ever: a process that was stopped answers late or never. Made by the owner of the mailbox;
// BeginStep and EndStep are called by the engine thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "runtime/backend/cold_mailbox.h"
#include "runtime/backend/device_experts.h"
#include "runtime/backend/expert_format.h"

namespace moed::backend {

class ColdExperts;
class ColdFetch;
class ColdForecast;
class ThreadPool;

struct ColdWorkersOptions {
  ExpertFormat format;
  std::vector<const std::byte*> layers;  // each layer's experts in host memory
  int num_threads = 1;
  // For guesses at the next layer's experts.
  std::vector<int> experts_per_layer;
  int top_k = 0;
  std::shared_ptr<const NextRouters> next_routers;  // null: there are none
};

// What a device with these options needs: the largest request that it can make, and the threads.
ColdMailboxSize ColdMailboxSizeFor(const DeviceExpertsOptions& options);
ColdWorkersOptions ColdWorkersOptionsFor(const DeviceExpertsOptions& options);

// UNAVAILABLE, when a request stayed without an answer for so long.
absl::Status ColdReplyMissing(int timeout_ms);

// What the CPU did in a step; cost as in cold_division.h.
struct ColdCpuWork {
  int64_t cost = 0;
  double seconds = 0;
};

class ColdWorkers {
 public:
  // `mailbox` must outlive this.
  ColdWorkers(ColdWorkersOptions options, const ColdMailbox& mailbox);
  // A request that is there and not begun stays without an answer.
  ~ColdWorkers();
  ColdWorkers(const ColdWorkers&) = delete;
  ColdWorkers& operator=(const ColdWorkers&) = delete;

  // Before the first request of a step can come.
  void BeginStep();
  // After the last one was answered: what was done since BeginStep.
  ColdCpuWork EndStep();

  // Which experts lie in VRAM, so that none of them is guessed: by the table's edits, and by how a
  // step used the experts `ids` of a layer. By the engine thread, at any time.
  void Follow(std::span<const ExpertEdit> edits);
  void FollowUses(int layer, std::span<const int32_t> ids, std::span<const ExpertUse> uses);

  // Any thread.
  ColdNeurons neurons() const;

 private:
  void Watch();
  bool HasRequest() const;
  void Answer();
  void ParkUntilStep();

  const ColdWorkersOptions options_;
  const ColdMailbox mailbox_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<ColdExperts> experts_;
  std::unique_ptr<ColdForecast> forecast_;
  std::unique_ptr<ColdFetch> fetch_;
  uint32_t answered_ = 0;  // the watching thread's
  // Of the step; written before the answer that they belong to.
  std::atomic<int64_t> cost_{0};
  std::atomic<int64_t> nanoseconds_{0};
  // Since the start.
  std::atomic<int64_t> neurons_computed_{0};
  std::atomic<int64_t> neurons_fetched_ahead_{0};
  std::atomic<bool> in_step_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<uint32_t> wake_ups_{0};  // what a parked watcher waits on
  std::thread watcher_;
};

}  // namespace moed::backend
