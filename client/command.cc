#include "client/command.h"

#include <cstdlib>
#include <iostream>

#include "absl/status/statusor.h"

namespace moed::client {
namespace {

absl::Status ConnectAndRun(const CommandLine& line) {
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(line.connect);
  if (!client.ok()) return client.status();
  return line.chosen(**client);
}

void AddSecurityFlags(CLI::App& app, SecurityOptions& security) {
  app.add_flag("--tls", security.tls, "Talk TLS, trusting this machine's authorities");
  app.add_option("--tls-ca", security.ca_file, "Talk TLS, trusting the authorities of this file")
      ->envname("MOED_TLS_CA");
  auto* certificate =
      app.add_option("--tls-cert", security.cert_file, "Own certificate, for mutual TLS")
          ->envname("MOED_TLS_CERT");
  auto* key = app.add_option("--tls-key", security.key_file, "Its key")->envname("MOED_TLS_KEY");
  certificate->needs(key);
  key->needs(certificate);
  app.add_option("--tls-server-name", security.server_name,
                 "Name in the server's certificate, if it is not the address");
  app.add_option("--api-key-file", security.api_key_file, "File whose first key is sent")
      ->envname("MOED_API_KEY_FILE");
  // Not a flag: everyone on a machine sees what others' command lines say.
  if (const char* api_key = std::getenv("MOED_API_KEY")) security.api_key = api_key;
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
  AddSecurityFlags(app, line.connect.security);
  AddGenerateCommand(app, line);
  AddChatCommand(app, line);
  AddInfoCommand(app, line);
  AddHealthCommand(app, line);
  AddTopCommand(app, line);
  AddExpertsCommand(app, line);
  AddCurveCommand(app, line);
  AddAdminCommand(app, line);
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
