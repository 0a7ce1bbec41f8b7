// moedctl health: one question, or waiting until the server can serve.

#include <iostream>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/command.h"

namespace moed::client {
namespace {

using grpc::health::v1::HealthCheckResponse;

struct HealthFlags {
  std::string service = v1::Inference::service_full_name();
  double wait_seconds = 0;
};

constexpr absl::Duration kPollInterval = absl::Milliseconds(200);

absl::Status Run(const HealthFlags& flags, absl::Duration timeout, Client& client) {
  const absl::Time give_up = absl::Now() + absl::Seconds(flags.wait_seconds);
  while (true) {
    Call call(timeout);
    const absl::StatusOr<HealthCheckResponse> health = client.CheckHealth(flags.service, call);
    const bool serving = health.ok() && health->status() == HealthCheckResponse::SERVING;
    if (!serving && absl::Now() < give_up) {
      absl::SleepFor(kPollInterval);
      continue;
    }
    if (!health.ok()) return health.status();
    const std::string& name = HealthCheckResponse::ServingStatus_Name(health->status());
    std::cout << name << std::endl;
    if (serving) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("the server says ", name));
  }
}

}  // namespace

void AddHealthCommand(CLI::App& app, CommandLine& line) {
  auto flags = std::make_shared<HealthFlags>();
  CLI::App* command = app.add_subcommand("health", "Ask whether the server can serve");
  command->add_option("--service", flags->service, "A service's full name; empty: the process")
      ->capture_default_str();
  command->add_option("--wait", flags->wait_seconds, "Seconds to wait until it serves");
  command->callback([&line, flags] {
    line.chosen = [&line, flags](Client& client) { return Run(*flags, line.timeout(), client); };
  });
}

}  // namespace moed::client
