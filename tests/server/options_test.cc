#include "server/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

namespace moed::server {
namespace {

using testing::HasSubstr;

Options Parsed(const std::vector<std::string>& arguments) {
  const ParsedCommandLine parsed = ParseCommandLine(arguments);
  EXPECT_TRUE(parsed.options) << parsed.text;
  return parsed.options.value_or(Options());
}

// An environment variable for the length of a test.
class ScopedEnvironment {
 public:
  ScopedEnvironment(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~ScopedEnvironment() { unsetenv(name_); }

 private:
  const char* name_;
};

std::string WriteConfig(const std::string& text) {
  const std::string path = testing::TempDir() + "/moed_options_test.toml";
  std::ofstream(path) << text;
  return path;
}

TEST(OptionsTest, DefaultsServeTheDemoModelOnLoopback) {
  const Options options = Parsed({});
  EXPECT_EQ(options.model, "");
  EXPECT_EQ(options.host, "127.0.0.1");
  EXPECT_EQ(options.port, 8500);
  EXPECT_EQ(options.metrics_port, 8501);
  EXPECT_EQ(options.device, Device::kAuto);
  EXPECT_EQ(options.max_message_bytes, 64 << 20);
}

TEST(OptionsTest, ReadsEveryFlag) {
  const Options options = Parsed({"--model",
                                  "/m",
                                  "--served-model-name",
                                  "name",
                                  "--host",
                                  "::1",
                                  "--port",
                                  "0",
                                  "--max-model-len",
                                  "2048",
                                  "--max-num-seqs",
                                  "8",
                                  "--max-num-batched-tokens=64",
                                  "--load-format",
                                  "dummy",
                                  "--seed",
                                  "7",
                                  "--device",
                                  "cpu",
                                  "--expert-budget",
                                  "12.5%",
                                  "--expert-format",
                                  "bf12",
                                  "--expert-policy",
                                  "lru",
                                  "--cold-path",
                                  "hybrid",
                                  "--metrics-port",
                                  "0",
                                  "--cpu-threads",
                                  "3",
                                  "--kv-cache-memory",
                                  "512MiB",
                                  "--max-queued-requests",
                                  "9",
                                  "--max-queued-tokens",
                                  "10",
                                  "--max-message-bytes",
                                  "8MiB",
                                  "--drain-seconds",
                                  "1.5",
                                  "--watchdog-seconds",
                                  "2.5",
                                  "--log-level",
                                  "debug"});
  EXPECT_EQ(options.model, "/m");
  EXPECT_EQ(options.served_model_name, "name");
  EXPECT_EQ(options.host, "::1");
  EXPECT_EQ(options.port, 0);
  EXPECT_EQ(options.max_model_len, 2048);
  EXPECT_EQ(options.max_num_seqs, 8);
  EXPECT_EQ(options.max_num_batched_tokens, 64);
  EXPECT_EQ(options.load_format, model::LoadFormat::kDummy);
  EXPECT_EQ(options.seed, 7u);
  EXPECT_EQ(options.device, Device::kCpu);
  EXPECT_EQ(options.expert_budget, "12.5%");
  EXPECT_EQ(options.expert_format, model::ExpertFormatPreference::kBF12);
  EXPECT_EQ(options.expert_policy, "lru");
  EXPECT_EQ(options.cold_path, model::ColdPathPreference::kHybrid);
  EXPECT_EQ(options.metrics_port, 0);
  EXPECT_EQ(options.cpu_threads, 3);
  EXPECT_EQ(options.kv_cache_bytes, int64_t{512} << 20);
  EXPECT_EQ(options.max_queued_requests, 9);
  EXPECT_EQ(options.max_queued_tokens, 10);
  EXPECT_EQ(options.max_message_bytes, 8 << 20);
  EXPECT_DOUBLE_EQ(options.drain_seconds, 1.5);
  EXPECT_DOUBLE_EQ(options.watchdog_seconds, 2.5);
  EXPECT_EQ(options.log_level, "debug");
}

TEST(OptionsTest, AutoIsAValue) {
  const Options options = Parsed({"--cpu-threads", "auto", "--kv-cache-memory", "auto",
                                  "--max-model-len", "auto", "--expert-budget", "auto"});
  EXPECT_EQ(options.cpu_threads, 0);
  EXPECT_EQ(options.kv_cache_bytes, 0);
  EXPECT_EQ(options.max_model_len, 0);
}

TEST(OptionsTest, RefusesBadValuesNamingTheFlag) {
  const std::vector<std::string> bad[] = {{"--port", "65536"},
                                          {"--port", "-1"},
                                          {"--port", "http"},
                                          {"--metrics-port", "70000"},
                                          {"--max-num-seqs", "0"},
                                          {"--max-num-batched-tokens", "-5"},
                                          {"--max-model-len", "0"},
                                          {"--max-model-len", "nan"},
                                          {"--load-format", "gguf"},
                                          {"--seed", "-1"},
                                          {"--device", "tpu"},
                                          {"--expert-budget", "lots"},
                                          {"--expert-budget", "-1GiB"},
                                          {"--expert-format", "int4"},
                                          {"--expert-policy", "random"},
                                          {"--cold-path", "pcie"},
                                          {"--cpu-threads", "0"},
                                          {"--cpu-threads", "many"},
                                          {"--kv-cache-memory", "0"},
                                          {"--kv-cache-memory", "4 gigs"},
                                          {"--kv-cache-memory", "-4"},
                                          {"--max-queued-requests", "-1"},
                                          {"--max-queued-tokens", "0"},
                                          {"--max-message-bytes", "1"},
                                          {"--drain-seconds", "-1"},
                                          {"--drain-seconds", "nan"},
                                          {"--watchdog-seconds", "-1"},
                                          {"--log-level", "loud"},
                                          {"--no-such-flag", "1"},
                                          {"--port"}};
  for (const std::vector<std::string>& arguments : bad) {
    const ParsedCommandLine parsed = ParseCommandLine(arguments);
    EXPECT_FALSE(parsed.options) << testing::PrintToString(arguments);
    EXPECT_EQ(parsed.exit_code, 2) << testing::PrintToString(arguments);
    EXPECT_THAT(parsed.text, HasSubstr(arguments.front()));
  }
}

TEST(OptionsTest, RefusesUnknownNamesNamingTheKnown) {
  for (const auto& [flag, names] : std::vector<std::pair<std::string, std::string>>{
           {"--device", "auto,cpu,cuda"},
           {"--expert-format", "auto,bf12,bf16"},
           {"--cold-path", "auto,cpu,hybrid,link,page"},
           {"--load-format", "auto,dummy"},
           {"--log-format", "json,text"}}) {
    const ParsedCommandLine parsed = ParseCommandLine({flag, "other"});
    EXPECT_FALSE(parsed.options);
    EXPECT_THAT(parsed.text, testing::AllOf(HasSubstr(flag), HasSubstr("other"), HasSubstr(names)));
  }
}

TEST(OptionsTest, HelpIsPlainText) {
  const std::string help = ParseCommandLine({"--help"}).text;
  EXPECT_THAT(help, HasSubstr("{auto,cpu,cuda}"));
  for (const char c : help) EXPECT_TRUE(c == '\n' || (c >= ' ' && c <= '~')) << int{c};
}

TEST(OptionsTest, CommandLineWinsOverEnvironmentOverFile) {
  const std::string config = WriteConfig("port = 1001\nmax-num-seqs = 3\nhost = \"file\"\n");
  const ScopedEnvironment port("MOED_PORT", "1002");
  const ScopedEnvironment seqs("MOED_MAX_NUM_SEQS", "4");
  const Options options = Parsed({"--config", config, "--port", "1003"});
  EXPECT_EQ(options.port, 1003);
  EXPECT_EQ(options.max_num_seqs, 4);
  EXPECT_EQ(options.host, "file");
}

TEST(OptionsTest, ConfigFileMayComeFromTheEnvironment) {
  const ScopedEnvironment config("MOED_CONFIG", WriteConfig("seed = 5").c_str());
  EXPECT_EQ(Parsed({}).seed, 5u);
}

TEST(OptionsTest, BadEnvironmentAndFileFail) {
  EXPECT_FALSE(ParseCommandLine({"--config", "/no/such/file.toml"}).options);
  const ParsedCommandLine unknown =
      ParseCommandLine({"--config", WriteConfig("no-such-flag = 1\n")});
  EXPECT_FALSE(unknown.options);
  EXPECT_THAT(unknown.text, HasSubstr("no-such-flag"));
  const ScopedEnvironment port("MOED_PORT", "x");
  EXPECT_FALSE(ParseCommandLine({}).options);
}

TEST(OptionsTest, HelpAndVersionLeaveWithSuccess) {
  const ParsedCommandLine help = ParseCommandLine({"--help"});
  EXPECT_FALSE(help.options);
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.text, HasSubstr("--expert-budget"));
  const ParsedCommandLine version = ParseCommandLine({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.text, HasSubstr("moed "));
}

}  // namespace
}  // namespace moed::server
