#include "runtime/engine/pass_pacer.h"

#include <algorithm>
#include <bit>

namespace moed::engine {
namespace {

// How much a new measurement counts.
constexpr double kNewShare = 0.125;
// A step far longer than the last ones was held up by something else: it counts as so many of them.
constexpr double kLongestOfEstimate = 4;
// Joins a step while nothing was measured.
constexpr int64_t kUnmeasuredTokens = 64;

void Update(double seconds, double* estimate) {
  const double counted = std::min(seconds, kLongestOfEstimate * *estimate);
  *estimate = *estimate == 0 ? seconds : *estimate + kNewShare * (counted - *estimate);
}

}  // namespace

void PassPacer::ObserveStep(int decodes, int64_t prefill_tokens, double seconds) {
  if (prefill_tokens == 0) {
    Update(seconds, &decode_);
  } else if (decodes == 0) {
    ObservePrefill(prefill_tokens, seconds);
  } else if (decode_ > 0) {
    ObservePrefill(prefill_tokens, std::max(0.0, seconds - decode_));
  }
}

void PassPacer::ObservePrefill(int64_t tokens, double seconds) {
  const int size =
      std::min(static_cast<int>(std::bit_width(static_cast<uint64_t>(tokens))) - 1, kSizes - 1);
  Update(seconds / static_cast<double>(tokens), &token_seconds_[size]);
}

int64_t PassPacer::MaxJoinedTokens() const {
  // The nearest measured size stands in for one that was not, a smaller one rather: a token of a
  // larger prefill costs less, so that says too much, and a larger one too little until it is
  // tried.
  double nearest = 0;
  for (double seconds : token_seconds_) {
    if (nearest == 0) nearest = seconds;
  }
  if (decode_ == 0 || nearest == 0) return kUnmeasuredTokens;
  const double limit_seconds = kSliceOfDecode * decode_;
  int64_t joined = 0;
  for (int size = 0; size < kSizes; ++size) {
    if (token_seconds_[size] > 0) nearest = token_seconds_[size];
    const int64_t smallest = int64_t{1} << size;
    const auto affordable = static_cast<int64_t>(
        std::min(limit_seconds / nearest, static_cast<double>(2 * smallest - 1)));
    if (affordable < smallest) break;
    joined = affordable;
  }
  return joined;
}

}  // namespace moed::engine
