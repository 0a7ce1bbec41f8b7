#include "runtime/backend/link_share_control.h"

#include <algorithm>

namespace moed::backend {
namespace {

// A step's weight among those before it: a change of rates is followed within some ten steps, one
// step that something held up moves the share by a few percent.
constexpr double kStepWeight = 0.2;
constexpr double kLeastShare = 1.0 / 32;

void Follow(int64_t cost, double seconds, double* rate) {
  if (cost <= 0 || !(seconds > 0)) return;
  const double measured = static_cast<double>(cost) / seconds;
  *rate = *rate == 0 ? measured : *rate + kStepWeight * (measured - *rate);
}

}  // namespace

ColdRates LinkShareControl::rates(const ExpertFormat& format) const {
  const double tile_bytes =
      static_cast<double>(format.blob_bytes()) / ColdTiles(format.intermediate());
  return {.link = link_rate_ * tile_bytes, .cpu = cpu_rate_ * tile_bytes};
}

void LinkShareControl::Observe(const ColdStepTimes& times) {
  Follow(times.link_cost, times.link_seconds, &link_rate_);
  Follow(times.cpu_cost, times.cpu_seconds, &cpu_rate_);
  if (link_rate_ == 0 || cpu_rate_ == 0) return;
  const double share = link_rate_ / (link_rate_ + cpu_rate_);
  share_ = static_cast<uint32_t>(std::clamp(share, kLeastShare, 1 - kLeastShare) * kAllOverLink);
}

}  // namespace moed::backend
