#include "runtime/model/rope_frequencies.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moed::model {
namespace {

constexpr double kTwoPi = 2 * std::numbers::pi;

double ScaleLlama3(const RopeConfig& rope, double frequency) {
  const double original = static_cast<double>(rope.original_max_positions);
  const double wavelength = kTwoPi / frequency;
  if (wavelength > original / rope.low_freq_factor) return frequency / rope.factor;
  if (wavelength < original / rope.high_freq_factor) return frequency;
  const double band = rope.high_freq_factor - rope.low_freq_factor;
  if (band <= 0) return frequency;  // no middle band: both limits coincide
  const double smooth = (original / wavelength - rope.low_freq_factor) / band;
  return (1 - smooth) * frequency / rope.factor + smooth * frequency;
}

// The pair index whose wave makes `rotations` turns over the original context.
double YarnPairAt(const RopeConfig& rope, double rotations) {
  const double original = static_cast<double>(rope.original_max_positions);
  return rope.rotary_dims * std::log(original / (rotations * kTwoPi)) / (2 * std::log(rope.theta));
}

struct YarnRamp {
  double low = 0;
  double high = 0;

  // 0: the original frequency, 1: the interpolated one.
  double At(int pair) const { return std::clamp((pair - low) / (high - low), 0.0, 1.0); }
};

YarnRamp MakeYarnRamp(const RopeConfig& rope) {
  YarnRamp ramp = {YarnPairAt(rope, rope.beta_fast), YarnPairAt(rope, rope.beta_slow)};
  if (rope.truncate) ramp = {std::floor(ramp.low), std::ceil(ramp.high)};
  ramp.low = std::max(ramp.low, 0.0);
  ramp.high = std::min(ramp.high, rope.rotary_dims - 1.0);
  if (ramp.low == ramp.high) ramp.high += 0.001;
  return ramp;
}

}  // namespace

std::vector<float> ComputeInverseFrequencies(const RopeConfig& rope) {
  const int pairs = rope.rotary_dims / 2;
  const YarnRamp yarn = rope.type == RopeType::kYarn ? MakeYarnRamp(rope) : YarnRamp{};
  std::vector<float> frequencies(pairs);
  for (int j = 0; j < pairs; ++j) {
    double frequency = std::pow(rope.theta, -2.0 * j / rope.rotary_dims);
    switch (rope.type) {
      case RopeType::kDefault:
        break;
      case RopeType::kLinear:
        frequency /= rope.factor;
        break;
      case RopeType::kLlama3:
        frequency = ScaleLlama3(rope, frequency);
        break;
      case RopeType::kYarn: {
        const double interpolated = yarn.At(j);
        frequency *= interpolated / rope.factor + (1 - interpolated);
        break;
      }
    }
    frequencies[j] = static_cast<float>(frequency);
  }
  return frequencies;
}

double YarnAttentionFactor(double factor, double scale) {
  return factor <= 1 ? 1 : 0.1 * scale * std::log(factor) + 1;
}

}  // namespace moed::model
