// moedctl's subcommands. Each adds itself with its flags; the one that the user names sets
// `chosen`, which then runs against a connected server.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/client.h"

namespace moed::client {

struct CommandLine {
  ConnectOptions connect;
  double timeout_seconds = 0;  // of one call; 0: none
  std::function<absl::Status(Client&)> chosen;

  absl::Duration timeout() const {
    return timeout_seconds > 0 ? absl::Seconds(timeout_seconds) : absl::InfiniteDuration();
  }
};

// `line` outlives the parsing and the run.
void AddGenerateCommand(CLI::App& app, CommandLine& line);
void AddChatCommand(CLI::App& app, CommandLine& line);
void AddInfoCommand(CLI::App& app, CommandLine& line);
void AddHealthCommand(CLI::App& app, CommandLine& line);
void AddTopCommand(CLI::App& app, CommandLine& line);
void AddExpertsCommand(CLI::App& app, CommandLine& line);
void AddCurveCommand(CLI::App& app, CommandLine& line);
void AddAdminCommand(CLI::App& app, CommandLine& line);
void AddBenchCommand(CLI::App& app, CommandLine& line);

// Parses the arguments and runs the chosen subcommand. The exit code: 0 on success; otherwise the
// gRPC status name and the reason are on stderr.
int RunMoedctl(int argc, const char* const* argv);

}  // namespace moed::client
