#include "client/cancel_on_interrupt.h"

#include <atomic>
#include <chrono>
#include <csignal>

namespace moed::client {
namespace {

using namespace std::chrono_literals;

// A signal handler may do no more than set this.
std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free);

}  // namespace

CancelOnInterrupt::CancelOnInterrupt(Call& call) {
  interrupted = false;
  std::signal(SIGINT, [](int) { interrupted = true; });
  watcher_ = std::jthread([&call](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      if (interrupted.exchange(false)) call.Cancel();
      std::this_thread::sleep_for(20ms);
    }
  });
}

CancelOnInterrupt::~CancelOnInterrupt() { std::signal(SIGINT, SIG_DFL); }

}  // namespace moed::client
