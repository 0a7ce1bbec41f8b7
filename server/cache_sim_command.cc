#include "server/cache_sim_command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <numeric>
#include <span>
#include <sstream>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cache/routing_log.h"
#include "cache/simulation.h"
#include "runtime/model/expert_budget.h"

namespace moed::server {
namespace {

using cache::SlotDivision;

// Beside the policies of the cache: a fixed list of the profile's most used experts.
constexpr char kStaticList[] = "static";

struct Flags {
  std::string trace;
  std::string profile;
  std::vector<std::string> budgets = {"15%", "30%", "50%", "75%"};
  std::vector<std::string> policies = {"recency-frequency", "lru", "lfu", kStaticList};
  bool csv = false;
};

// A recorded trace with what static lists are made from.
struct Recording {
  cache::RoutingLog log;
  cache::SimulatedModel model;
  std::vector<cache::RoutingTrace> profile;
};

// One policy at one budget; hits and evictions by division.
struct Row {
  std::string policy;
  cache::SimulationResult equal;
  cache::SimulationResult by_worth;
};

absl::StatusOr<cache::RoutingLog> ReadLog(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  auto log = cache::ParseRoutingLog(bytes);
  if (!log.ok()) {
    return absl::Status(log.status().code(), absl::StrCat(path, ": ", log.status().message()));
  }
  if (log->steps.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " has no steps"));
  return log;
}

absl::StatusOr<Recording> ReadRecording(const Flags& flags) {
  auto log = ReadLog(flags.trace);
  if (!log.ok()) return log.status();
  Recording recording = {.log = *std::move(log), .model = {}, .profile = {}};
  recording.model = {recording.log.header.experts_per_layer, recording.log.header.top_k};
  if (flags.profile.empty()) {
    const std::vector<cache::RoutingTrace>& steps = recording.log.steps;
    recording.profile.assign(steps.begin(), steps.begin() + std::max<int64_t>(1, steps.size() / 4));
    return recording;
  }
  auto profile = ReadLog(flags.profile);
  if (!profile.ok()) return profile.status();
  if (profile->header.experts_per_layer != recording.model.experts_per_layer) {
    return absl::InvalidArgumentError("the profile was recorded of a model of another shape");
  }
  recording.profile = std::move(profile->steps);
  return recording;
}

int64_t TotalExperts(const Recording& recording) {
  return std::accumulate(recording.model.experts_per_layer.begin(),
                         recording.model.experts_per_layer.end(), int64_t{0});
}

absl::StatusOr<int> Residents(const std::string& text, const Recording& recording) {
  const auto budget = model::ParseExpertBudget(text);
  if (!budget.ok()) return budget.status();
  const int64_t expert_bytes = std::max<int64_t>(1, recording.log.header.expert_bytes);
  const int64_t num_experts = TotalExperts(recording);
  return model::ResolveExpertSlots(*budget, {.num_experts = num_experts,
                                             .expert_bytes = expert_bytes,
                                             .top_k = 1,
                                             .available_bytes = num_experts * expert_bytes});
}

absl::StatusOr<cache::SimulationResult> Simulate(const Recording& recording,
                                                 const std::string& policy, int residents,
                                                 SlotDivision division) {
  std::vector<cache::ExpertKey> list;
  if (policy == kStaticList) list = MostUsed(recording.model, division, recording.profile);
  return cache::Simulate(
      recording.model,
      {.policy = policy, .residents = residents, .division = division, .preload = list},
      recording.log.steps);
}

absl::StatusOr<Row> SimulateRow(const Recording& recording, const std::string& policy,
                                int residents) {
  auto equal = Simulate(recording, policy, residents, SlotDivision::kEqualPerLayer);
  if (!equal.ok()) return equal.status();
  auto by_worth = Simulate(recording, policy, residents, SlotDivision::kByWorth);
  if (!by_worth.ok()) return by_worth.status();
  return Row{policy, *equal, *by_worth};
}

Row OptimumRow(const Recording& recording, int residents) {
  Row row = {.policy = "optimum", .equal = {}, .by_worth = {}};
  row.equal.demands =
      cache::Optimum(recording.model, residents, SlotDivision::kEqualPerLayer, recording.log.steps);
  row.by_worth.demands =
      cache::Optimum(recording.model, residents, SlotDivision::kByWorth, recording.log.steps);
  return row;
}

void PrintHead(const Recording& recording, const Flags& flags) {
  if (flags.csv) {
    std::cout << "trace,model,budget,residents,policy,division,hit_rate,of_optimum,hits,misses,"
                 "admissions,evictions,bytes\n";
    return;
  }
  const cache::RoutingLogHeader& header = recording.log.header;
  std::cout << absl::StrFormat("%s: %s, %d layers, %d experts, top %d, %d steps%s\n", flags.trace,
                               header.model, header.experts_per_layer.size(),
                               TotalExperts(recording), header.top_k, recording.log.steps.size(),
                               recording.log.truncated ? ", the last cut short" : "");
  std::cout << absl::StrFormat("%-24s|%-27s|%s\n", "", " equal slots in every layer",
                               " slots where they pay");
  std::cout << "budget  policy            |  hit rate  of optimum     |  hit rate  of optimum   "
               "evictions     bytes/step\n";
}

void PrintCsvRow(const Recording& recording, const Flags& flags, const std::string& budget,
                 int residents, const Row& row, const Row& optimum) {
  const auto print = [&](const char* division, const cache::SimulationResult& result,
                         const cache::HitCount& best) {
    std::cout << absl::StrFormat("%s,%s,%s,%d,%s,%s,%.5f,%.5f,%d,%d,%d,%d,%d\n", flags.trace,
                                 recording.log.header.model, budget, residents, row.policy,
                                 division, result.demands.hit_rate(),
                                 result.demands.hit_rate() / best.hit_rate(), result.demands.hits,
                                 result.demands.misses, result.admissions, result.evictions,
                                 result.demands.misses * recording.log.header.expert_bytes);
  };
  print("equal", row.equal, optimum.equal.demands);
  print("by_worth", row.by_worth, optimum.by_worth.demands);
}

void PrintRow(const Recording& recording, const std::string& budget, const Row& row,
              const Row& optimum) {
  const double equal = row.equal.demands.hit_rate();
  const double by_worth = row.by_worth.demands.hit_rate();
  const double bytes = static_cast<double>(row.by_worth.demands.misses) *
                       static_cast<double>(recording.log.header.expert_bytes) /
                       static_cast<double>(recording.log.steps.size());
  std::cout << absl::StrFormat("%-7s %-18s|  %8.4f  %10.4f     |  %8.4f  %10.4f  %10d  %13.0f\n",
                               budget, row.policy, equal, equal / optimum.equal.demands.hit_rate(),
                               by_worth, by_worth / optimum.by_worth.demands.hit_rate(),
                               row.by_worth.evictions, bytes);
}

absl::Status Run(const Flags& flags) {
  const absl::StatusOr<Recording> recording = ReadRecording(flags);
  if (!recording.ok()) return recording.status();
  PrintHead(*recording, flags);
  for (const std::string& budget : flags.budgets) {
    const absl::StatusOr<int> residents = Residents(budget, *recording);
    if (!residents.ok()) return residents.status();
    const Row optimum = OptimumRow(*recording, *residents);
    std::vector<Row> rows = {optimum};
    for (const std::string& policy : flags.policies) {
      absl::StatusOr<Row> row = SimulateRow(*recording, policy, *residents);
      if (!row.ok()) return row.status();
      rows.push_back(*std::move(row));
    }
    for (const Row& row : rows) {
      if (flags.csv) {
        PrintCsvRow(*recording, flags, budget, *residents, row, optimum);
      } else {
        PrintRow(*recording, budget, row, optimum);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

int RunCacheSim(const std::vector<std::string>& arguments) {
  Flags flags;
  CLI::App app("Replays recorded routing through the expert cache, policy by policy.",
               "moed cache-sim");
  app.add_option("TRACE", flags.trace, "File that moed --record-routing wrote")->required();
  app.add_option("--budget", flags.budgets, "Resident experts: 30%, 6GiB or 96slots; several by ,")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--policy", flags.policies,
                 "recency-frequency, lru, lfu, or static: the profile's most used experts")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--profile", flags.profile,
                 "Trace that static lists are made from [the first quarter of TRACE]");
  app.add_flag("--csv", flags.csv, "Print comma-separated values");
  try {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());  // as parse wants it
    app.parse(std::move(reversed));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const absl::Status status = Run(flags);
  if (status.ok()) return 0;
  std::cerr << status.message() << std::endl;
  return 1;
}

}  // namespace moed::server
