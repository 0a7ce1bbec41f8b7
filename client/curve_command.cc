// moedctl curve: what another expert budget would give.

#include <iostream>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "client/command.h"
#include "client/curve_plot.h"
#include "client/json_output.h"

namespace moed::client {
namespace {

struct CurveFlags {
  std::vector<int> slots;
  int columns = 80;
  bool csv = false;
  bool json = false;
};

absl::Status Run(const CurveFlags& flags, absl::Duration timeout, Client& client) {
  v1::GetBudgetCurveRequest request;
  request.mutable_slots()->Add(flags.slots.begin(), flags.slots.end());
  Call call(timeout);
  const absl::StatusOr<v1::BudgetCurve> curve = client.GetBudgetCurve(request, call);
  if (!curve.ok()) return curve.status();
  if (flags.json) return PrintJson(*curve, std::cout);
  std::cout << (flags.csv ? CurveCsv(*curve) : CurvePlot(*curve, flags.columns));
  return absl::OkStatus();
}

}  // namespace

void AddCurveCommand(CLI::App& app, CommandLine& line) {
  auto flags = std::make_shared<CurveFlags>();
  CLI::App* command = app.add_subcommand("curve", "Show what other expert budgets would give");
  command->add_option("--slots", flags->slots, "Budgets to estimate [32 of them]")->delimiter(',');
  command->add_option("--columns", flags->columns, "Width of the plot")
      ->check(CLI::Range(20, 400))
      ->capture_default_str();
  command->add_flag("--csv", flags->csv, "Print comma-separated values");
  command->add_flag("--json", flags->json, "Print the whole response as JSON");
  command->callback([&line, flags] {
    line.chosen = [&line, flags](Client& client) { return Run(*flags, line.timeout(), client); };
  });
}

}  // namespace moed::client
