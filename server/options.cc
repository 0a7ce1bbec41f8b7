#include "server/options.h"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <map>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "cache/policy.h"
#include "runtime/model/expert_budget.h"

namespace moed::server {
namespace {

constexpr int kUsageError = 2;
constexpr double kMaxDrainSeconds = 86400;

// CLI11 reads -1 into an unsigned number without a word.
std::string CheckUnsigned(const std::string& input) {
  const bool digits =
      !input.empty() && std::all_of(input.begin(), input.end(), absl::ascii_isdigit);
  return digits ? "" : absl::StrCat("\"", input, "\" is not a number from 0 up");
}

// Written so that NaN, which CLI11's ranges let through, fails.
std::string CheckSeconds(const std::string& input) {
  double seconds = 0;
  const bool parsed = absl::SimpleAtod(input, &seconds);
  if (parsed && seconds >= 0 && seconds <= kMaxDrainSeconds) return "";
  return absl::StrCat("\"", input, "\" is not a number of seconds from 0 to ", kMaxDrainSeconds);
}

// "auto" or a size like 4GiB or 1048576, at least 1; auto becomes 0.
std::string ParseBytes(std::string& input) {
  if (input == "auto") {
    input = "0";
    return "";
  }
  const std::string given = input;
  bool parsed = false;
  try {
    parsed = CheckUnsigned(given.substr(0, 1)).empty() &&
             CLI::AsSizeValue(/*kb_is_1000=*/false)(input).empty() && input != "0";
  } catch (const CLI::ValidationError&) {
    parsed = false;
  }
  if (parsed) return "";
  return absl::StrCat("\"", given, "\" is not a size; write auto, or bytes as 4GiB or 512MiB");
}

// A whole number from 1, or "auto", which becomes 0.
std::string ParseCountOrAuto(std::string& input) {
  int64_t count = 0;
  if (input == "auto") {
    input = "0";
    return "";
  }
  if (CLI::detail::lexical_cast(input, count) && count >= 1) return "";
  return absl::StrCat("\"", input, "\" is neither auto nor a number from 1 up");
}

std::string CheckBudget(const std::string& input) {
  const auto budget = model::ParseExpertBudget(input);
  return budget.ok() ? "" : std::string(budget.status().message());
}

std::string CheckPolicy(const std::string& input) {
  const auto policy = cache::ParsePolicy(input);
  return policy.ok() ? "" : std::string(policy.status().message());
}

// One of the names of `values`. Of transformations the last added runs first: this one says what
// the names are, which CheckedTransformer does not, since it prints the values too.
template <typename Value>
CLI::IsMember NameOf(const std::map<std::string, Value>& values) {
  std::vector<std::string> names;
  for (const auto& [name, value] : values) names.push_back(name);
  return CLI::IsMember(names);
}

void AddCheckpointFlags(CLI::App& app, Options& options) {
  static const std::map<std::string, model::LoadFormat> kLoadFormats = {
      {"auto", model::LoadFormat::kAuto}, {"dummy", model::LoadFormat::kDummy}};
  app.add_option("--model", options.model,
                 "Checkpoint directory: config.json, *.safetensors, tokenizer.json [demo model]");
  app.add_option("--served-model-name", options.served_model_name,
                 "Name that requests use [the directory's name]");
  app.add_option("--load-format", options.load_format,
                 "auto: the checkpoint's files; dummy: random weights from --seed")
      ->transform(CLI::CheckedTransformer(kLoadFormats).description(""))
      ->transform(NameOf(kLoadFormats));
  app.add_option("--seed", options.seed, "Seed of dummy weights [0]")->check(CheckUnsigned);
}

void AddNetworkFlags(CLI::App& app, Options& options) {
  app.add_option("--host", options.host, "Address to listen on [127.0.0.1]");
  app.add_option("--port", options.port, "gRPC port; 0: any free one [8500]")
      ->check(CLI::Range(0, 65535));
  app.add_option("--metrics-port", options.metrics_port,
                 "HTTP port of /metrics and /metrics/experts; 0: any free one [8501]")
      ->check(CLI::Range(0, 65535));
  app.add_option("--health-port", options.health_port,
                 "Another port, in plain text, for health alone; for probes when TLS is on [none]")
      ->check(CLI::Range(0, 65535));
  app.add_option("--gateway-port", options.gateway_port,
                 "Another port, in plain text and without keys, for VllmEngine alone; for routers "
                 "that send neither, behind a network policy [none]")
      ->check(CLI::Range(0, 65535));
  app.add_option("--admin-host", options.admin_host, "Address of the admin service [127.0.0.1]");
  app.add_option("--admin-port", options.admin_port,
                 "gRPC port of moed.v1.Admin: plain text on loopback, else TLS and a key [none]")
      ->check(CLI::Range(0, 65535));
  app.add_option("--max-message-bytes", options.max_message_bytes,
                 "Largest request message, as 64MiB [64MiB]")
      ->transform(CLI::Validator(ParseBytes, "SIZE"))
      ->check(CLI::Range(int64_t{1024}, int64_t{std::numeric_limits<int>::max()}));
  app.add_option("--max-metadata-bytes", options.max_metadata_bytes,
                 "Largest metadata of a call, as 16KiB [16KiB]")
      ->transform(CLI::Validator(ParseBytes, "SIZE"))
      ->check(CLI::Range(int64_t{1024}, int64_t{1} << 20));
  app.add_option("--max-connection-age-seconds", options.max_connection_age_seconds,
                 "Connections are told to go after so long, when their calls have ended; 0: never "
                 "[0]")
      ->check(CheckSeconds);
  app.add_option("--drain-seconds", options.drain_seconds,
                 "After SIGTERM, how long running requests may go on [30]")
      ->check(CheckSeconds);
  app.add_option("--watchdog-seconds", options.watchdog_seconds,
                 "A device or thread without progress for so long hangs, and the daemon exits; 0: "
                 "never [60]")
      ->check(CheckSeconds);
}

// The two flags, which need each other; the first.
CLI::Option* AddTlsPair(CLI::App& app, const std::string& prefix, const std::string& what,
                        TlsFiles& tls) {
  auto* certificate = app.add_option(prefix + "-cert", tls.certificate,
                                     "Certificate chain, PEM: turns TLS on for " + what);
  auto* key = app.add_option(prefix + "-key", tls.private_key, "Its private key, PEM");
  certificate->needs(key);
  key->needs(certificate);
  return certificate;
}

void AddSecurityFlags(CLI::App& app, Options& options) {
  auto* certificate = AddTlsPair(app, "--tls", "gRPC", options.tls);
  app.add_option("--tls-client-ca", options.tls.client_ca,
                 "Certificates of authorities, PEM: clients must present a certificate of theirs")
      ->needs(certificate);
  app.add_option("--tls-reload-seconds", options.tls_reload_seconds,
                 "How often the files are looked at for a change [60]")
      ->check(CLI::Range(1, 86400));
  app.add_option("--api-key-file", options.api_key_file,
                 "File of bearer keys, one a line; SIGHUP reads it again");
  app.add_option("--admin-key-file", options.admin_key_file,
                 "The same for the admin port: lines `KEY admin`");
  AddTlsPair(app, "--metrics-tls", "the metrics port", options.metrics_tls);
  app.add_option("--metrics-auth-file", options.metrics_auth_file,
                 "Who may read the metrics port, lines USER:SHA256; SIGHUP reads it again");
}

void AddBatchingFlags(CLI::App& app, Options& options) {
  constexpr int64_t kManyTokens = int64_t{1} << 40;
  app.add_option("--max-model-len", options.max_model_len,
                 "Longest context, prompt and output, in tokens [auto: the checkpoint's]")
      ->transform(CLI::Validator(ParseCountOrAuto, "N|auto"))
      ->check(CLI::Range(int64_t{0}, kManyTokens));
  app.add_option("--max-num-seqs", options.max_num_seqs, "Sequences in one batch [64]")
      ->check(CLI::Range(1, 65536));
  app.add_option("--max-num-batched-tokens", options.max_num_batched_tokens,
                 "Tokens in one step; longer prompts go in chunks [auto: 512, on a GPU 4096]")
      ->transform(CLI::Validator(ParseCountOrAuto, "N|auto"))
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--max-queued-requests", options.max_queued_requests,
                 "Requests that may wait before new ones are refused [1024]")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20));
  app.add_option("--max-queued-tokens", options.max_queued_tokens,
                 "Prompt tokens that may wait before new requests are refused [1048576]")
      ->check(CLI::Range(int64_t{1}, kManyTokens));
}

void AddMemoryFlags(CLI::App& app, Options& options) {
  static const std::map<std::string, Device> kDevices = {
      {"auto", Device::kAuto}, {"cpu", Device::kCpu}, {"cuda", Device::kCuda}};
  app.add_option("--device", options.device, "auto, cpu or cuda [auto]")
      ->transform(CLI::CheckedTransformer(kDevices).description(""))
      ->transform(NameOf(kDevices));
  app.add_option("--gpu-memory-utilization", options.gpu_memory_utilization,
                 "Share of the GPU's memory to use, 0.05 to 1 [0.9]")
      ->check(CLI::Range(0.05, 1.0));
  app.add_option("--cpu-threads", options.cpu_threads, "Compute threads [auto]")
      ->transform(CLI::Validator(ParseCountOrAuto, "N|auto"))
      ->check(CLI::Range(0, 4096));
  app.add_option("--kv-cache-memory", options.kv_cache_bytes,
                 "Memory of the KV cache, as 4GiB [auto]")
      ->transform(CLI::Validator(ParseBytes, "SIZE|auto"));
}

void AddExpertFlags(CLI::App& app, Options& options) {
  using Format = model::ExpertFormatPreference;
  static const std::map<std::string, Format> kFormats = {
      {"auto", Format::kAuto}, {"bf16", Format::kBF16}, {"bf12", Format::kBF12}};
  app.add_option("--expert-format", options.expert_format,
                 "How experts lie in memory: bf16, bf12 (lossless, 12 bits), or auto: bf12 if moed "
                 "convert wrote the checkpoint, and on a GPU wherever it pays [auto]")
      ->transform(CLI::CheckedTransformer(kFormats).description(""))
      ->transform(NameOf(kFormats));
  static const std::map<std::string, model::ColdPathPreference> kColdPaths = {
      {"auto", model::ColdPathPreference::kAuto},
      {"link", model::ColdPathPreference::kLink},
      {"cpu", model::ColdPathPreference::kCpu},
      {"hybrid", model::ColdPathPreference::kHybrid},
      {"page", model::ColdPathPreference::kPage}};
  app.add_option("--expert-budget", options.expert_budget,
                 "Memory of resident experts: auto, 6GiB, 40% of all, or 96slots [auto]")
      ->check(CheckBudget);
  app.add_option("--expert-policy", options.expert_policy,
                 "Which experts stay: recency-frequency, lru, lfu or static [recency-frequency]")
      ->check(CheckPolicy);
  app.add_option("--cold-path", options.cold_path,
                 "Where a GPU's experts without a slot are computed: link (by the GPU, from host "
                 "memory), cpu, hybrid (both at once), page (read into slots first); auto: hybrid, "
                 "link with few CPUs, page if host memory cannot hold every expert [auto]")
      ->transform(CLI::CheckedTransformer(kColdPaths).description(""))
      ->transform(NameOf(kColdPaths));
  app.add_option("--max-expert-budget", options.max_expert_budget,
                 "Memory taken at start for the budget to grow into while serving [the budget]")
      ->check(CheckBudget);
  app.add_option("--hot-set-file", options.hot_set_file,
                 "Keep which experts are hot in this file, and load them first at the next start");
  app.add_option("--hot-set-interval", options.hot_set_interval_seconds,
                 "Seconds between saves of the hot set; also saved when the daemon stops [60]")
      ->check(CLI::Range(0.1, kMaxDrainSeconds));
  app.add_option("--hot-set-load-seconds", options.hot_set_load_seconds,
                 "How long a start may wait for experts to be loaded [60]")
      ->check(CheckSeconds);
  app.add_option("--record-routing", options.record_routing,
                 "Record which experts every step used into this file, for moed cache-sim");
}

void AddLogFlags(CLI::App& app, Options& options) {
  static const std::map<std::string, LogFormat> kFormats = {{"text", LogFormat::kText},
                                                            {"json", LogFormat::kJson}};
  app.add_option("--log-level", options.log_level, "trace, debug, info, warn, error or off [info]")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}));
  app.add_option("--log-format", options.log_format, "text or json [text]")
      ->transform(CLI::CheckedTransformer(kFormats).description(""))
      ->transform(NameOf(kFormats));
}

// MOED_SOME_FLAG for --some-flag.
std::string EnvironmentName(const std::string& flag) {
  return absl::StrCat("MOED_", absl::AsciiStrToUpper(absl::StrReplaceAll(flag, {{"-", "_"}})));
}

// The environment as flags, ahead of the command line's own, which override them.
std::vector<std::string> WithEnvironment(const CLI::App& app,
                                         const std::vector<std::string>& arguments) {
  std::vector<std::string> all;
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty() || option->get_items_expected_max() == 0) continue;
    const std::string& flag = option->get_lnames().front();
    if (const char* value = std::getenv(EnvironmentName(flag).c_str())) {
      all.push_back(absl::StrCat("--", flag, "=", value));
    }
  }
  all.insert(all.end(), arguments.begin(), arguments.end());
  return all;
}

}  // namespace

ParsedCommandLine ParseCommandLine(const std::vector<std::string>& arguments) {
  Options options;
  CLI::App app("moed serves a Mixture-of-Experts model over gRPC.", "moed");
  app.footer(
      "moed doctor, with the same flags, says what is in the way on this machine;\n"
      "moed convert writes a checkpoint whose experts take three quarters of the bytes.\n"
      "Every flag --some-flag is also the environment variable MOED_SOME_FLAG, and a line\n"
      "`some-flag = value` of the file given by --config. Flags win, then the environment.");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.set_version_flag("--version", absl::StrCat("moed ", MOED_VERSION));
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.set_config("--config", "", "Configuration file (TOML)");
  AddCheckpointFlags(app, options);
  AddNetworkFlags(app, options);
  AddSecurityFlags(app, options);
  AddBatchingFlags(app, options);
  AddMemoryFlags(app, options);
  AddExpertFlags(app, options);
  AddLogFlags(app, options);

  ParsedCommandLine parsed;
  app.add_flag("--check-config", parsed.check_only,
               "Only check flags, files and what they name, then leave");
  std::vector<std::string> all = WithEnvironment(app, arguments);
  std::reverse(all.begin(), all.end());  // as App::parse wants it
  try {
    app.parse(std::move(all));
    parsed.options = std::move(options);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out;
    parsed.exit_code = app.exit(error, out, out) == 0 ? 0 : kUsageError;
    parsed.text = out.str();
  }
  return parsed;
}

}  // namespace moed::server
