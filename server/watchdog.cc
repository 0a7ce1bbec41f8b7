#include "server/watchdog.h"

#include <algorithm>

namespace moed::server {
namespace {

// An update that comes later than this was itself held up.
constexpr absl::Duration kLongestTick = absl::Seconds(1);

}  // namespace

bool Watchdog::Update(int64_t progress, Clock::time_point now) {
  if (progress_ != progress) {
    progress_ = progress;
    stalled_ = absl::ZeroDuration();
  } else {
    stalled_ += std::min(absl::FromChrono(now - last_update_), kLongestTick);
  }
  last_update_ = now;
  return patience_ > absl::ZeroDuration() && stalled_ > patience_;
}

}  // namespace moed::server
