#include "client/top_frame.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/heat_map.h"
#include "client/quantities.h"

namespace moed::client {
namespace {

constexpr int kHeaderLines = 5;
// "layer  hit rate    paged/s  in ", then the cells.
constexpr int kLayerColumns = 34;

int ExpertsOf(const v1::ExpertStats& stats) {
  return stats.layers_size() == 0 ? 0 : stats.layers(0).expert_tokens_total_size();
}

std::string Line(const std::string& text, const TopLayout& layout) {
  return absl::StrCat(text.substr(0, std::max(1, layout.columns)), "\n");
}

std::string Header(const v1::ExpertStats& now, const ExpertRates& rates, const TopLayout& layout) {
  const v1::ServingStats& serving = now.serving();
  const int64_t experts = int64_t{now.layers_size()} * ExpertsOf(now);
  std::string header = Line(absl::StrFormat("%s  up %.0f s  policy %s", now.model(),
                                            serving.uptime_seconds(), now.policy()),
                            layout);
  header += Line(
      absl::StrFormat("%.1f tokens/s  prompt %.1f tokens/s  %.1f steps/s  running %d  waiting %d  "
                      "KV %s",
                      rates.generation_tokens_per_second, rates.prompt_tokens_per_second,
                      rates.steps_per_second, serving.running(), serving.waiting(),
                      Percent(serving.kv_usage(), 1)),
      layout);
  const int64_t uses = rates.hits + rates.misses;
  header +=
      Line(absl::StrFormat("experts  hit %s  paged %s/s  stalled %s of the time  %d of %d fit (%s)",
                           Percent(static_cast<double>(rates.hits), static_cast<double>(uses)),
                           Bytes(rates.bytes_paged_per_second), Percent(rates.stall_share, 1),
                           now.slots(), experts, Bytes(static_cast<double>(now.budget_bytes()))),
           layout);
  return header;
}

std::string LayerLine(const LayerRates& layer, const HeatMapStyle& style) {
  const double uses = static_cast<double>(layer.hits + layer.misses);
  return absl::StrFormat(
      "%5d  %8s  %7s/s  %4d  %s\n", layer.layer, Percent(static_cast<double>(layer.hits), uses),
      Bytes(layer.bytes_paged_per_second), layer.resident, HeatMapRow(layer, style));
}

}  // namespace

std::string TopFrame(const v1::ExpertStats& now, const ExpertRates& rates,
                     const TopLayout& layout) {
  const HeatMapStyle style = {std::max(8, layout.columns - kLayerColumns), layout.color};
  std::string frame = Header(now, rates, layout);
  absl::StrAppend(&frame, HeatMapLegend(ExpertsOf(now), style), "\n");
  frame += Line("layer  hit rate    paged/s    in  experts", layout);
  size_t shown = rates.layers.size();
  if (layout.rows > 0 && kHeaderLines + shown > static_cast<size_t>(layout.rows)) {
    shown = static_cast<size_t>(std::max(0, layout.rows - kHeaderLines - 1));
  }
  for (size_t i = 0; i < shown; ++i) frame += LayerLine(rates.layers[i], style);
  const size_t hidden = rates.layers.size() - shown;
  if (hidden > 0) frame += Line(absl::StrFormat("... and %d more layers", hidden), layout);
  return frame;
}

}  // namespace moed::client
