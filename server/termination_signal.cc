#include "server/termination_signal.h"

#include <csignal>
#include <ctime>

namespace moed::server {
namespace {

sigset_t TerminationSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

}  // namespace

TerminationSignal::TerminationSignal() {
  const sigset_t signals = TerminationSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

bool TerminationSignal::WaitFor(absl::Duration timeout) {
  const sigset_t signals = TerminationSignals();
  const timespec limit = absl::ToTimespec(timeout);
  if (sigtimedwait(&signals, nullptr, &limit) < 0) return false;
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  return true;
}

}  // namespace moed::server
