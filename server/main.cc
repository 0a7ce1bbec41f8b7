// The moed daemon.
#include <spdlog/spdlog.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "server/cache_sim_command.h"
#include "server/check_configuration.h"
#include "server/convert_command.h"
#include "server/doctor.h"
#include "server/listen_address.h"
#include "server/log.h"
#include "server/model_directory.h"
#include "server/model_host.h"
#include "server/options.h"
#include "server/server.h"
#include "server/service_manager.h"
#include "server/termination_signal.h"

namespace moed::server {
namespace {

// What a running daemon takes from its configuration anew: the log's level, and files it names.
void Reload(const std::vector<std::string>& arguments, Server& server) {
  const ParsedCommandLine parsed = ParseCommandLine(arguments);
  if (parsed.options) {
    SetLogLevel(parsed.options->log_level);
    spdlog::info("reloading; log level {}", parsed.options->log_level);
  } else {
    spdlog::error("the configuration stays as it is: {}", parsed.text);
  }
  server.Reload();
}

}  // namespace
}  // namespace moed::server

int main(int argc, char** argv) {
  using namespace moed::server;  // NOLINT(google-build-using-namespace): main is only glue
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (!arguments.empty() && arguments.front() == "cache-sim") {
    return RunCacheSim({arguments.begin() + 1, arguments.end()});
  }
  if (!arguments.empty() && arguments.front() == "convert") {
    return RunConvert({arguments.begin() + 1, arguments.end()});
  }
  TerminationSignal termination;
  const bool doctor = !arguments.empty() && arguments.front() == "doctor";
  if (doctor) arguments.erase(arguments.begin());
  const ParsedCommandLine parsed = ParseCommandLine(arguments);
  if (!parsed.options) {
    (parsed.exit_code == 0 ? std::cout : std::cerr) << parsed.text;
    return parsed.exit_code;
  }
  const Options& options = *parsed.options;
  StartLog(options.log_format, options.log_level);

  if (doctor) return RunDoctor(options, std::cout);
  if (parsed.check_only) return CheckConfiguration(options, std::cout);

  // Told before it listens: what waits for it to become ready would wait for nothing.
  if (const auto directory = FindModelDirectory(options.model); !directory.ok()) {
    spdlog::critical("{}", std::string(directory.status().message()));
    return EXIT_FAILURE;
  }
  const auto server = Server::Create(options, LoadModel);
  if (!server.ok()) {
    spdlog::critical("{}", std::string(server.status().message()));
    return EXIT_FAILURE;
  }
  // The one line on standard output, for scripts that start the daemon on port 0.
  std::cout << "moed listening grpc=" << ListenAddress(options.host, (*server)->port())
            << " metrics=" << ListenAddress(options.host, (*server)->metrics_port());
  if ((*server)->admin_port() != kNoPort) {
    std::cout << " admin=" << ListenAddress(options.admin_host, (*server)->admin_port());
  }
  std::cout << std::endl;

  ServiceManager manager = ServiceManager::FromEnvironment();
  const absl::Status status = (*server)->Run([&](absl::Duration timeout) {
    const Signal signal = termination.WaitFor(timeout);
    const Health health = (*server)->health();
    manager.Update(health.live, health.ready, absl::Now());
    if (signal == Signal::kReload) Reload(arguments, **server);
    if (signal == Signal::kStop) manager.Stopping();
    return signal == Signal::kStop;
  });
  if (!status.ok()) spdlog::critical("{}", std::string(status.message()));
  const int exit_code = status.ok() ? EXIT_SUCCESS : EXIT_FAILURE;
  // Nothing is lost with a checkpoint half read, and waiting for the reader could take minutes;
  // what hangs may take for ever.
  if (!(*server)->may_be_destroyed()) std::_Exit(exit_code);
  return exit_code;
}
