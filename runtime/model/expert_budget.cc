#include "runtime/model/expert_budget.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"

namespace moed::model {
namespace {

constexpr double kMiB = 1 << 20;

constexpr std::pair<std::string_view, double> kByteUnits[] = {
    {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};

absl::Status BadBudget(std::string_view text) {
  return absl::InvalidArgumentError(absl::StrFormat(
      "expert budget \"%s\" is not understood; write auto, bytes as 6GiB, a percentage of all "
      "experts as 12.5%%, or a count as 96slots",
      text));
}

// Digits and a point alone, so that "1e3", "nan" and "-1" are refused.
bool ParseAmount(std::string_view text, double* amount) {
  if (text.empty() || text.find_first_not_of("0123456789.") != std::string_view::npos) return false;
  const auto [end, error] = std::from_chars(text.begin(), text.end(), *amount);
  return error == std::errc() && end == text.end();
}

// Takes `suffix` off the end of `text` if it is there.
bool ConsumeSuffix(std::string_view* text, std::string_view suffix) {
  if (!text->ends_with(suffix)) return false;
  text->remove_suffix(suffix.size());
  return true;
}

double SlotsBought(const ExpertBudget& budget, const ExpertDemand& demand) {
  switch (budget.kind) {
    case ExpertBudget::Kind::kAuto:
      return std::floor(static_cast<double>(demand.available_bytes) /
                        static_cast<double>(demand.expert_bytes));
    case ExpertBudget::Kind::kBytes:
      return std::floor(budget.amount / static_cast<double>(demand.expert_bytes));
    case ExpertBudget::Kind::kPercent:
      return std::floor(budget.amount / 100 * static_cast<double>(demand.num_experts));
    case ExpertBudget::Kind::kSlots:
      return budget.amount;
  }
  return 0;
}

}  // namespace

absl::StatusOr<ExpertBudget> ParseExpertBudget(std::string_view text) {
  if (text == "auto") return ExpertBudget{};
  ExpertBudget budget;
  std::string_view number = text;
  if (ConsumeSuffix(&number, "%")) {
    budget.kind = ExpertBudget::Kind::kPercent;
    if (!ParseAmount(number, &budget.amount) || budget.amount > 100) return BadBudget(text);
    return budget;
  }
  if (ConsumeSuffix(&number, "slots")) {
    budget.kind = ExpertBudget::Kind::kSlots;
    if (!ParseAmount(number, &budget.amount) || budget.amount != std::floor(budget.amount)) {
      return BadBudget(text);
    }
    return budget;
  }
  for (const auto& [unit, bytes] : kByteUnits) {
    if (!ConsumeSuffix(&number, unit)) continue;
    budget.kind = ExpertBudget::Kind::kBytes;
    if (!ParseAmount(number, &budget.amount)) return BadBudget(text);
    budget.amount *= bytes;
    return budget;
  }
  return BadBudget(text);
}

absl::StatusOr<int> ResolveExpertSlots(const ExpertBudget& budget, const ExpertDemand& demand) {
  const double slots =
      std::min(SlotsBought(budget, demand), static_cast<double>(demand.num_experts));
  if (slots < demand.top_k) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "the expert budget holds %.0f experts of %.1f MiB, but a token needs %d at once; the "
        "smallest legal budget is %dslots (%.1f MiB)",
        slots, static_cast<double>(demand.expert_bytes) / kMiB, demand.top_k, demand.top_k,
        static_cast<double>(demand.expert_bytes * demand.top_k) / kMiB));
  }
  const double bytes = slots * static_cast<double>(demand.expert_bytes);
  if (bytes > static_cast<double>(demand.available_bytes)) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "the expert budget takes %.0f MiB, but %.0f MiB are left for experts; lower "
        "--expert-budget or --kv-cache-memory",
        bytes / kMiB, static_cast<double>(demand.available_bytes) / kMiB));
  }
  return static_cast<int>(slots);
}

}  // namespace moed::model
