// Shows that a step advances, to who watches from another thread. Beaten by the engine thread.
#pragma once

#include <atomic>
#include <cstdint>

namespace moed::model {

class Heartbeat {
 public:
  void Beat() { beats_.fetch_add(1, std::memory_order_relaxed); }
  int64_t beats() const { return beats_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> beats_ = 0;
};

}  // namespace moed::model
