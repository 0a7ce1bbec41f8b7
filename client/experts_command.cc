// moedctl experts: the cache's counters once, with the hottest experts of each layer.

#include <algorithm>
#include <iostream>
#include <memory>
#include <numeric>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "client/command.h"
#include "client/expert_rates.h"
#include "client/json_output.h"
#include "client/quantities.h"

namespace moed::client {
namespace {

struct ExpertsFlags {
  int top = 5;
  bool json = false;
};

// "17* 4.2 %": expert 17 is resident and took 4.2 % of the layer's tokens.
std::string Hottest(const LayerRates& layer, int count) {
  std::vector<int> order(layer.tokens.size());
  std::iota(order.begin(), order.end(), 0);
  const auto hotter = [&](int a, int b) { return layer.tokens[a] > layer.tokens[b]; };
  std::stable_sort(order.begin(), order.end(), hotter);
  const double total =
      static_cast<double>(std::accumulate(layer.tokens.begin(), layer.tokens.end(), int64_t{0}));
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(count, order.size()); ++i) {
    const int expert = order[i];
    absl::StrAppendFormat(&text, "  %4d%s %s", expert, layer.is_resident[expert] ? "*" : " ",
                          Percent(static_cast<double>(layer.tokens[expert]), total));
  }
  return text;
}

void Print(const v1::ExpertStats& stats, int top) {
  const ExpertRates rates = RatesBetween(nullptr, stats);
  std::cout << absl::StrFormat(
      "%s  policy %s  %d slots (%s)  hit rate %s since start\n", stats.model(), stats.policy(),
      stats.slots(), Bytes(static_cast<double>(stats.budget_bytes())),
      Percent(static_cast<double>(rates.hits), static_cast<double>(rates.hits + rates.misses)));
  std::cout << "layer      hits    misses  hit rate  evicted     paged  in  hottest (* resident)\n";
  for (int i = 0; i < stats.layers_size(); ++i) {
    const v1::LayerStats& layer = stats.layers(i);
    const auto hits = static_cast<double>(layer.hits_total());
    const auto misses = static_cast<double>(layer.misses_total());
    std::cout << absl::StrFormat("%5d  %8s  %8s  %8s  %7s  %8s  %2d%s\n", layer.layer(),
                                 Count(hits), Count(misses), Percent(hits, hits + misses),
                                 Count(static_cast<double>(layer.evictions_total())),
                                 Bytes(static_cast<double>(layer.bytes_paged_total())),
                                 layer.resident(), Hottest(rates.layers[i], top));
  }
}

absl::Status Run(const ExpertsFlags& flags, absl::Duration timeout, Client& client) {
  v1::GetExpertStatsRequest request;
  request.set_per_expert(true);
  Call call(timeout);
  const absl::StatusOr<v1::ExpertStats> stats = client.GetExpertStats(request, call);
  if (!stats.ok()) return stats.status();
  if (flags.json) return PrintJson(*stats, std::cout);
  Print(*stats, flags.top);
  return absl::OkStatus();
}

}  // namespace

void AddExpertsCommand(CLI::App& app, CommandLine& line) {
  auto flags = std::make_shared<ExpertsFlags>();
  CLI::App* command = app.add_subcommand("experts", "Show the expert cache's counters");
  command->add_option("--top", flags->top, "Hottest experts to name in each layer")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_flag("--json", flags->json, "Print the whole response as JSON");
  command->callback([&line, flags] {
    line.chosen = [&line, flags](Client& client) { return Run(*flags, line.timeout(), client); };
  });
}

}  // namespace moed::client
