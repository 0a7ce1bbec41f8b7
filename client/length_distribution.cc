#include "client/length_distribution.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace moed::client {
namespace {

constexpr double kMaxLength = 1e7;

bool IsLength(double length) { return length >= 1 && length <= kMaxLength; }

}  // namespace

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(std::string_view text) {
  std::vector<std::string> parts = absl::StrSplit(absl::string_view(text.data(), text.size()), ':');
  const bool is_lognormal = parts.size() == 3 && parts[0] == "lognormal";
  if (is_lognormal) parts.erase(parts.begin());
  if (parts.size() == 1) parts.push_back(parts[0]);
  double first = 0;
  double second = 0;
  if (parts.size() == 2 && absl::SimpleAtod(parts[0], &first) &&
      absl::SimpleAtod(parts[1], &second) && IsLength(first)) {
    if (is_lognormal && second >= 0 && second <= 10) {
      return LengthDistribution(Kind::kLogNormal, first, second);
    }
    if (!is_lognormal && IsLength(second) && first <= second) {
      return LengthDistribution(Kind::kUniform, std::floor(first), std::floor(second));
    }
  }
  return absl::InvalidArgumentError(absl::StrCat("\"", std::string(text),
                                                 "\" is not a length: give 128, 16:256 or "
                                                 "lognormal:MEDIAN:SIGMA"));
}

int64_t LengthDistribution::Sample(std::mt19937_64& random) const {
  if (kind_ == Kind::kUniform) {
    return std::uniform_int_distribution<int64_t>(std::llround(first_),
                                                  std::llround(second_))(random);
  }
  std::lognormal_distribution<double> lognormal(std::log(first_), second_);
  return std::llround(std::clamp(lognormal(random), 1.0, kMaxLength));
}

}  // namespace moed::client
