#include "server/termination_signal.h"

#include <csignal>
#include <ctime>
#include <initializer_list>

namespace moed::server {
namespace {

sigset_t SetOf(std::initializer_list<int> numbers) {
  sigset_t signals;
  sigemptyset(&signals);
  for (int number : numbers) sigaddset(&signals, number);
  return signals;
}

}  // namespace

TerminationSignal::TerminationSignal() {
  const sigset_t signals = SetOf({SIGTERM, SIGINT, SIGHUP});
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

Signal TerminationSignal::WaitFor(absl::Duration timeout) {
  const sigset_t signals = SetOf({SIGTERM, SIGINT, SIGHUP});
  const timespec limit = absl::ToTimespec(timeout);
  const int number = sigtimedwait(&signals, nullptr, &limit);
  if (number < 0) return Signal::kNone;
  if (number == SIGHUP) return Signal::kReload;
  const sigset_t stopping = SetOf({SIGTERM, SIGINT});
  pthread_sigmask(SIG_UNBLOCK, &stopping, nullptr);
  return Signal::kStop;
}

}  // namespace moed::server
