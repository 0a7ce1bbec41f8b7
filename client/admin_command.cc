// moedctl admin: changes to a serving daemon's expert cache, at its admin port.

#include <iostream>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/command.h"
#include "client/quantities.h"

namespace moed::client {
namespace {

// "3:17": expert 17 of layer 3.
absl::StatusOr<v1::ExpertId> ParseExpert(const std::string& text) {
  const size_t colon = text.find(':');
  int32_t layer = 0;
  int32_t expert = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(text.substr(0, colon), &layer) ||
      !absl::SimpleAtoi(text.substr(colon + 1), &expert)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is no expert; write LAYER:EXPERT as 3:17"));
  }
  v1::ExpertId id;
  id.set_layer(layer);
  id.set_expert(expert);
  return id;
}

template <typename Request>
absl::StatusOr<Request> ExpertsRequest(const std::vector<std::string>& experts) {
  Request request;
  for (const std::string& text : experts) {
    absl::StatusOr<v1::ExpertId> id = ParseExpert(text);
    if (!id.ok()) return id.status();
    *request.add_experts() = *std::move(id);
  }
  return request;
}

absl::Status SetBudget(const std::string& budget, absl::Duration timeout, Client& client) {
  v1::SetBudgetRequest request;
  request.set_budget(budget);
  Call call(timeout);
  const auto response = client.SetBudget(request, call);
  if (!response.ok()) return response.status();
  std::cout << absl::StrFormat("%d slots, %s\n", response->slots(),
                               Bytes(static_cast<double>(response->budget_bytes())));
  return absl::OkStatus();
}

absl::Status Pin(const std::vector<std::string>& experts, absl::Duration timeout, Client& client) {
  const auto request = ExpertsRequest<v1::PinExpertsRequest>(experts);
  if (!request.ok()) return request.status();
  Call call(timeout);
  return client.PinExperts(*request, call).status();
}

absl::Status Unpin(const std::vector<std::string>& experts, absl::Duration timeout,
                   Client& client) {
  const auto request = ExpertsRequest<v1::UnpinExpertsRequest>(experts);
  if (!request.ok()) return request.status();
  Call call(timeout);
  return client.UnpinExperts(*request, call).status();
}

absl::Status SaveHotSet(absl::Duration timeout, Client& client) {
  Call call(timeout);
  const auto response = client.SaveHotSet({}, call);
  if (!response.ok()) return response.status();
  std::cout << absl::StrFormat("%d resident experts saved to %s\n", response->residents(),
                               response->path());
  return absl::OkStatus();
}

absl::Status ResetStats(absl::Duration timeout, Client& client) {
  Call call(timeout);
  return client.ResetStats({}, call).status();
}

// A subcommand over a list of experts.
template <typename Run>
void AddExpertsCommand(CLI::App& admin, CommandLine& line, const char* name, const char* help,
                       Run run) {
  auto experts = std::make_shared<std::vector<std::string>>();
  CLI::App* command = admin.add_subcommand(name, help);
  command->add_option("EXPERTS", *experts, "LAYER:EXPERT, as 3:17 0:4")->required();
  command->callback([&line, experts, run] {
    line.chosen = [&line, experts, run](Client& client) {
      return run(*experts, line.timeout(), client);
    };
  });
}

}  // namespace

void AddAdminCommand(CLI::App& app, CommandLine& line) {
  CLI::App* admin =
      app.add_subcommand("admin", "Change the expert cache; --address is the daemon's admin port");
  admin->require_subcommand(1);
  auto budget = std::make_shared<std::string>();
  CLI::App* set_budget = admin->add_subcommand("set-budget", "Resident experts from now on");
  set_budget->add_option("BUDGET", *budget, "6GiB, 40%, 96slots, or auto")->required();
  set_budget->callback([&line, budget] {
    line.chosen = [&line, budget](Client& client) {
      return SetBudget(*budget, line.timeout(), client);
    };
  });
  AddExpertsCommand(*admin, line, "pin", "Keep experts resident", Pin);
  AddExpertsCommand(*admin, line, "unpin", "Let the policy decide again", Unpin);
  admin->add_subcommand("save-hot-set", "Write the hot set now")->callback([&line] {
    line.chosen = [&line](Client& client) { return SaveHotSet(line.timeout(), client); };
  });
  admin->add_subcommand("reset-stats", "Zero the expert counters")->callback([&line] {
    line.chosen = [&line](Client& client) { return ResetStats(line.timeout(), client); };
  });
}

}  // namespace moed::client
