// The moed daemon.
#include <spdlog/spdlog.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "server/listen_address.h"
#include "server/log.h"
#include "server/model_host.h"
#include "server/options.h"
#include "server/server.h"
#include "server/termination_signal.h"

int main(int argc, char** argv) {
  using namespace moed::server;  // NOLINT(google-build-using-namespace): main is only glue
  TerminationSignal termination;
  const ParsedCommandLine parsed = ParseCommandLine({argv + 1, argv + argc});
  if (!parsed.options) {
    (parsed.exit_code == 0 ? std::cout : std::cerr) << parsed.text;
    return parsed.exit_code;
  }
  const Options& options = *parsed.options;
  StartLog(options.log_format, options.log_level);

  const auto server = Server::Create(options, LoadModel);
  if (!server.ok()) {
    spdlog::critical("{}", std::string(server.status().message()));
    return EXIT_FAILURE;
  }
  // The one line on standard output, for scripts that start the daemon on port 0.
  std::cout << "moed listening grpc=" << ListenAddress(options.host, (*server)->port())
            << " metrics=" << ListenAddress(options.host, (*server)->metrics_port()) << std::endl;

  const absl::Status status =
      (*server)->Run([&](absl::Duration timeout) { return termination.WaitFor(timeout); });
  if (!status.ok()) spdlog::critical("{}", std::string(status.message()));
  const int exit_code = status.ok() ? EXIT_SUCCESS : EXIT_FAILURE;
  // Nothing is lost with a checkpoint half read, and waiting for the reader could take minutes.
  if (!(*server)->loaded()) std::_Exit(exit_code);
  return exit_code;
}
