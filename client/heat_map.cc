#include "client/heat_map.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace moed::client {
namespace {

constexpr int kLevels = 5;
constexpr std::array<const char*, kLevels> kResident = {"▁", "▃", "▅", "▇", "█"};
constexpr std::array<const char*, kLevels> kAbsent = {" ", "·", ":", "o", "O"};
constexpr std::array<int, kLevels> kResidentColors = {238, 24, 37, 178, 220};
constexpr int kAbsentColor = 203;

struct Cell {
  int64_t tokens = 0;
  int experts = 0;
  int resident = 0;
};

int ExpertsPerCell(int experts, const HeatMapStyle& style) {
  const int columns = std::max(1, style.columns);
  return std::max(1, (experts + columns - 1) / columns);
}

// 0 without tokens; 2 around an even share, each level up twice as much.
int Level(const Cell& cell, double even_share) {
  if (cell.tokens <= 0) return 0;
  const double ratio = static_cast<double>(cell.tokens) / (even_share * cell.experts);
  return std::clamp(static_cast<int>(std::lround(2 + std::log2(ratio))), 1, kLevels - 1);
}

void AppendCell(const Cell& cell, int level, bool color, std::string& row) {
  const bool resident = 2 * cell.resident >= cell.experts;
  const char* glyph = resident ? kResident[level] : kAbsent[level];
  if (!color) {
    absl::StrAppend(&row, glyph);
    return;
  }
  absl::StrAppendFormat(&row, "\x1b[38;5;%dm%s", resident ? kResidentColors[level] : kAbsentColor,
                        glyph);
}

}  // namespace

std::string HeatMapRow(const LayerRates& layer, const HeatMapStyle& style) {
  const int experts = static_cast<int>(layer.tokens.size());
  if (experts == 0) return "";
  const int group = ExpertsPerCell(experts, style);
  int64_t total = 0;
  for (const int64_t tokens : layer.tokens) total += tokens;
  const double even_share = static_cast<double>(total) / experts;
  std::string row;
  for (int first = 0; first < experts; first += group) {
    Cell cell;
    for (int i = first; i < std::min(first + group, experts); ++i) {
      cell.tokens += layer.tokens[i];
      cell.resident += layer.is_resident[i] ? 1 : 0;
      ++cell.experts;
    }
    AppendCell(cell, Level(cell, even_share), style.color, row);
  }
  if (style.color) absl::StrAppend(&row, "\x1b[0m");
  return row;
}

std::string HeatMapLegend(int experts, const HeatMapStyle& style) {
  std::string legend = "resident ";
  for (int level = 0; level < kLevels; ++level) {
    AppendCell({.experts = 1, .resident = 1}, level, style.color, legend);
  }
  if (style.color) absl::StrAppend(&legend, "\x1b[0m");
  absl::StrAppend(&legend, "  not resident ");
  for (int level = 1; level < kLevels; ++level) {
    AppendCell({.experts = 1}, level, style.color, legend);
  }
  if (style.color) absl::StrAppend(&legend, "\x1b[0m");
  absl::StrAppend(&legend, "  (unused to hot)");
  const int group = ExpertsPerCell(experts, style);
  if (group > 1) absl::StrAppend(&legend, ", ", group, " experts a cell");
  return legend;
}

}  // namespace moed::client
