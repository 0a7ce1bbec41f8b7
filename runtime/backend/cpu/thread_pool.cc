#include "runtime/backend/cpu/thread_pool.h"

#include <algorithm>

#include "runtime/backend/cpu/spin_wait.h"

namespace moed::backend {
namespace {

constexpr uint64_t kOpen = uint64_t{1} << 31;

}  // namespace

ThreadPool::ThreadPool(int num_threads, std::chrono::microseconds spin_time)
    : spin_time_(spin_time) {
  threads_.reserve(num_threads - 1);
  for (int worker = 1; worker < num_threads; ++worker) {
    threads_.emplace_back([this, worker] { RunWorker(worker); });
  }
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::ParallelFor(int64_t count, int64_t grain, Body body) {
  if (count <= 0) return;
  if (threads_.empty() || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) {
      body(begin, std::min(count, begin + grain), 0);
    }
    return;
  }
  loop_ = {&body, count, grain};
  next_chunk_.store(0, std::memory_order_relaxed);
  const uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
  gate_.store(uint64_t{epoch} << 32 | kOpen, std::memory_order_release);
  epoch_.store(epoch, std::memory_order_release);
  epoch_.notify_all();
  RunChunks(0);
  Close();
}

void ThreadPool::RunChunks(int worker) {
  const Loop loop = loop_;
  const int64_t num_chunks = (loop.count + loop.grain - 1) / loop.grain;
  for (;;) {
    const int64_t chunk = next_chunk_.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= num_chunks) return;
    const int64_t begin = chunk * loop.grain;
    (*loop.body)(begin, std::min(loop.count, begin + loop.grain), worker);
  }
}

// Lets nobody else in and waits for those inside.
void ThreadPool::Close() {
  uint64_t gate = gate_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  SpinWait spin;
  while (static_cast<uint32_t>(gate) != 0) {
    spin.Pause();
    gate = gate_.load(std::memory_order_acquire);
  }
}

bool ThreadPool::Enter(uint32_t epoch) {
  uint64_t gate = gate_.load(std::memory_order_relaxed);
  while (gate >> 32 == epoch && (gate & kOpen) != 0) {
    if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire,
                                    std::memory_order_relaxed)) {
      return true;
    }
  }
  return false;
}

void ThreadPool::RunWorker(int worker) {
  uint32_t epoch = 0;
  for (;;) {
    epoch = WaitForLoop(epoch);
    if (stopping_.load(std::memory_order_relaxed)) return;
    if (!Enter(epoch)) continue;
    RunChunks(worker);
    gate_.fetch_sub(1, std::memory_order_release);
  }
}

uint32_t ThreadPool::WaitForLoop(uint32_t seen_epoch) const {
  const auto park_time = std::chrono::steady_clock::now() + spin_time_;
  SpinWait spin;
  do {
    for (int i = 0; i < 32; ++i) {
      const uint32_t epoch = epoch_.load(std::memory_order_acquire);
      if (epoch != seen_epoch) return epoch;
      spin.Pause();
    }
  } while (std::chrono::steady_clock::now() < park_time);
  epoch_.wait(seen_epoch, std::memory_order_acquire);
  return epoch_.load(std::memory_order_acquire);
}

}  // namespace moed::backend
