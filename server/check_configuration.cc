#include "server/check_configuration.h"

#include <string>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "runtime/model/checkpoint.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "server/access_control.h"
#include "server/api_keys.h"
#include "server/model_directory.h"

namespace moed::server {
namespace {

absl::Status CheckCheckpoint(const Options& options) {
  const absl::StatusOr<std::string> directory = FindModelDirectory(options.model);
  if (!directory.ok()) return directory.status();
  const auto checkpoint = model::OpenCheckpoint(
      {.directory = *directory, .load_format = options.load_format, .seed = options.seed});
  if (!checkpoint.ok()) return checkpoint.status();
  const auto tokenizer = text::LoadTokenizer(*directory);
  if (!tokenizer.ok() && !absl::IsNotFound(tokenizer.status())) return tokenizer.status();
  const auto chat_template = text::LoadChatTemplate(*directory);
  return absl::IsNotFound(chat_template.status()) ? absl::OkStatus() : chat_template.status();
}

}  // namespace

int CheckConfiguration(const Options& options, std::ostream& out) {
  int exit_code = 0;
  const auto report = [&](const char* what, const absl::Status& status) {
    out << what << ": " << (status.ok() ? "ok" : std::string(status.message())) << "\n";
    if (!status.ok()) exit_code = 1;
  };
  report("flags", absl::OkStatus());
  report("checkpoint", CheckCheckpoint(options));
  if (options.tls.enabled()) report("certificates", CheckTlsFiles(options.tls, absl::Now()));
  if (!options.api_key_file.empty()) report("keys", ApiKeys::Load(options.api_key_file).status());
  // The others, and whether all of them together keep what they protect.
  report("access", AccessControl::Load(options).status());
  return exit_code;
}

}  // namespace moed::server
