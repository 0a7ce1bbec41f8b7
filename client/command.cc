#include "client/command.h"

#include <iostream>

#include "absl/status/statusor.h"

namespace moed::client {
namespace {

absl::Status ConnectAndRun(const CommandLine& line) {
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(line.connect);
  if (!client.ok()) return client.status();
  return line.chosen(**client);
}

}  // namespace

int RunMoedctl(int argc, const char* const* argv) {
  CLI::App app("Talks to a moed server.", "moedctl");
  app.require_subcommand(1);
  app.fallthrough();
  CommandLine line;
  double connect_timeout_seconds = absl::ToDoubleSeconds(line.connect.timeout);
  app.add_option("--address", line.connect.address, "HOST:PORT of the server")
      ->envname("MOED_ADDRESS")
      ->capture_default_str();
  app.add_option("--timeout", line.timeout_seconds, "Seconds that a call may take; 0: any");
  app.add_option("--connect-timeout", connect_timeout_seconds, "Seconds to wait for the server")
      ->capture_default_str();
  AddGenerateCommand(app, line);
  AddChatCommand(app, line);
  AddInfoCommand(app, line);
  AddHealthCommand(app, line);
  AddTopCommand(app, line);
  AddExpertsCommand(app, line);
  AddBenchCommand(app, line);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  line.connect.timeout = absl::Seconds(connect_timeout_seconds);
  const absl::Status status = ConnectAndRun(line);
  if (status.ok()) return 0;
  std::cerr << absl::StatusCodeToString(status.code()) << ": " << status.message() << std::endl;
  return 1;
}

}  // namespace moed::client
