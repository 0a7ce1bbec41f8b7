// The compute threads of the CPU backend: a fixed set that runs one parallel loop at a time, made
// for loops of a few microseconds. Workers spin briefly after a loop, then park in the kernel; a
// loop never waits for a worker that is still asleep. Owned by CpuBackend; loops are started by one
// thread at a time (the engine's) and never from inside a loop.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace moed::backend {

class ThreadPool {
 public:
  // Called with [begin, end) of the range and the worker that runs it, in [0, num_threads).
  using Body = absl::FunctionRef<void(int64_t begin, int64_t end, int worker)>;

  // Longer than the serial work between two ops of a layer, shorter than anybody would notice.
  static constexpr std::chrono::microseconds kSpinTime{80};

  // `num_threads` >= 1 counts the calling thread, which is worker 0. Workers without a loop spin
  // for `spin_time` before they park.
  explicit ThreadPool(int num_threads, std::chrono::microseconds spin_time = kSpinTime);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Runs `body` over [0, count) in chunks [i * grain, (i + 1) * grain), which workers take as they
  // get free, and returns when all are done. Where chunks begin does not depend on the number of
  // threads; which worker runs them, and in what order, is not determined.
  void ParallelFor(int64_t count, int64_t grain, Body body);

 private:
  struct Loop {
    const Body* body = nullptr;
    int64_t count = 0;
    int64_t grain = 1;
  };

  void RunWorker(int worker);
  uint32_t WaitForLoop(uint32_t seen_epoch) const;
  bool Enter(uint32_t epoch);
  void RunChunks(int worker);
  void Close();

  const std::chrono::microseconds spin_time_;
  Loop loop_;  // written only while the gate is closed and nobody is inside
  alignas(64) std::atomic<int64_t> next_chunk_{0};
  // epoch << 32 | open << 31 | workers inside. A worker may enter the loop of its epoch only while
  // the gate is open, so a late one finds it closed and goes back to waiting.
  alignas(64) std::atomic<uint64_t> gate_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};  // what workers wait on
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

}  // namespace moed::backend
