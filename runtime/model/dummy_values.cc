#include "runtime/model/dummy_values.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

namespace moed::model {
namespace {

constexpr int64_t kBlockValues = 1 << 18;
constexpr int64_t kRunValues = 1024;

// SplitMix64 (Steele, Lea and Flood, 2014): a bijection that mixes all bits.
constexpr uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// In (0, 1].
double ToUnit(uint64_t bits) { return static_cast<double>((bits >> 11) + 1) * 0x1p-53; }

}  // namespace

DummyValues::DummyValues(uint64_t seed, float standard_deviation)
    : seed_(Mix(seed)), block_(kBlockValues + kRunValues) {
  // Box and Muller: two normals of two uniforms.
  for (size_t i = 0; i + 1 < block_.size(); i += 2) {
    const uint64_t bits = Mix(seed_ + i);
    const double radius = standard_deviation * std::sqrt(-2 * std::log(ToUnit(bits)));
    const double angle = 2 * std::numbers::pi * ToUnit(Mix(bits));
    block_[i] = backend::ToBFloat16(static_cast<float>(radius * std::cos(angle)));
    block_[i + 1] = backend::ToBFloat16(static_cast<float>(radius * std::sin(angle)));
  }
}

void DummyValues::Fill(uint64_t tensor_id, int64_t first, std::span<backend::BFloat16> out) const {
  const uint64_t tensor_key = Mix(seed_ ^ Mix(tensor_id));
  while (!out.empty()) {
    const int64_t within = first % kRunValues;
    const int64_t count = std::min<int64_t>(kRunValues - within, static_cast<int64_t>(out.size()));
    const uint64_t start = Mix(tensor_key + static_cast<uint64_t>(first / kRunValues));
    std::memcpy(out.data(), block_.data() + start % kBlockValues + within,
                count * sizeof(backend::BFloat16));
    first += count;
    out = out.subspan(static_cast<size_t>(count));
  }
}

}  // namespace moed::model
