// Waiting for memory that another thread, or a device, is about to write. One thread's, one wait's.
#pragma once

#include <thread>

namespace moed::backend {

class SpinWait {
 public:
  // Between two looks. After a while each gives the CPU away, since the other side may need it.
  void Pause() {
    if (++pauses_ < kSpins) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else {
      std::this_thread::yield();
    }
  }
  void Reset() { pauses_ = 0; }

 private:
  static constexpr int kSpins = 4096;
  int pauses_ = 0;
};

}  // namespace moed::backend
