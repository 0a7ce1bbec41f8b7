#include "client/flag_values.h"

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace moed::client {
namespace {

// Older Abseils have a string_view of their own.
absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace

absl::StatusOr<std::vector<int32_t>> ParseTokenIds(std::string_view text) {
  std::vector<int32_t> ids;
  if (text.empty()) return ids;
  for (const absl::string_view part : absl::StrSplit(View(text), ',')) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(part, &id) || id < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", part, "\" is not a token id; give ids as in 5,6,7"));
    }
    ids.push_back(id);
  }
  return ids;
}

absl::StatusOr<std::map<int32_t, float>> ParseLogitBias(std::string_view text) {
  std::map<int32_t, float> biases;
  if (text.empty()) return biases;
  for (const absl::string_view part : absl::StrSplit(View(text), ',')) {
    const std::pair<std::string, std::string> sides = absl::StrSplit(part, absl::MaxSplits('=', 1));
    int32_t id = 0;
    float bias = 0;
    if (!absl::SimpleAtoi(sides.first, &id) || id < 0 || !absl::SimpleAtof(sides.second, &bias)) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", part, "\" is not a bias; give biases as in 12=-1.5,40=100"));
    }
    biases[id] = bias;
  }
  return biases;
}

}  // namespace moed::client
