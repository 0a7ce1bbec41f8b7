// How long prompts and answers of a load test are. Pure.
#pragma once

#include <cstdint>
#include <random>
#include <string_view>

#include "absl/status/statusor.h"

namespace moed::client {

class LengthDistribution {
 public:
  // "128": always; "16:256": uniform, both ends included; "lognormal:MEDIAN:SIGMA": the logarithm
  // is normal with that standard deviation. INVALID_ARGUMENT for anything else, lengths below 1
  // and above 10 million.
  static absl::StatusOr<LengthDistribution> Parse(std::string_view text);

  int64_t Sample(std::mt19937_64& random) const;

 private:
  enum class Kind { kUniform, kLogNormal };
  LengthDistribution(Kind kind, double first, double second)
      : kind_(kind), first_(first), second_(second) {}

  Kind kind_;
  double first_;   // least, or median
  double second_;  // most, or sigma
};

}  // namespace moed::client
