// moedctl bench: a load test against a running server.

#include <unistd.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "client/bench_plan.h"
#include "client/bench_report.h"
#include "client/bench_run.h"
#include "client/command.h"
#include "client/sampling_flags.h"

namespace moed::client {
namespace {

struct BenchFlags {
  BenchSettings settings = {.num_requests = 100, .concurrency = 8};
  std::string prompt_tokens = "128";
  std::string output_tokens = "64";
  float temperature = 0;
  bool json = false;
};

absl::StatusOr<BenchPlan> MakePlan(BenchFlags flags, absl::Duration timeout, Client& client) {
  const absl::StatusOr<LengthDistribution> prompt = LengthDistribution::Parse(flags.prompt_tokens);
  if (!prompt.ok()) return prompt.status();
  const absl::StatusOr<LengthDistribution> output = LengthDistribution::Parse(flags.output_tokens);
  if (!output.ok()) return output.status();
  Call call(timeout);
  const absl::StatusOr<v1::GetModelResponse> model = client.GetModel({}, call);
  if (!model.ok()) return model.status();
  flags.settings.vocab_size = model->vocab_size();
  v1::GenerateRequest base;
  base.mutable_sampling()->set_temperature(flags.temperature);
  base.set_return_token_ids_only(true);
  return MakeBenchPlan(flags.settings, *prompt, *output, base);
}

// A count on the terminal, twice a second, while the load runs.
std::jthread ShowProgress(const std::atomic<int64_t>& finished, size_t total) {
  if (isatty(STDERR_FILENO) == 0) return {};
  return std::jthread([&finished, total](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      std::cerr << "\r" << finished.load() << " of " << total << " requests" << std::flush;
      absl::SleepFor(absl::Milliseconds(500));
    }
    std::cerr << "\r\x1b[K" << std::flush;
  });
}

absl::Status Run(const BenchFlags& flags, absl::Duration timeout, Client& client) {
  const absl::StatusOr<BenchPlan> plan = MakePlan(flags, timeout, client);
  if (!plan.ok()) return plan.status();
  std::atomic<int64_t> finished = 0;
  std::vector<BenchRecord> records;
  {
    const std::jthread progress = ShowProgress(finished, plan->requests.size());
    records = RunBench(*plan, timeout, client, finished);
  }
  const BenchReport report = MakeBenchReport(records);
  if (flags.json) {
    std::cout << report.ToJson().dump(2) << std::endl;
  } else {
    std::cout << report.ToText();
  }
  if (report.succeeded > 0 || report.requests == 0) return absl::OkStatus();
  return records.front().status;
}

}  // namespace

void AddBenchCommand(CLI::App& app, CommandLine& line) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = app.add_subcommand("bench", "Measure latency and throughput under load");
  CLI::Option* rate = command
                          ->add_option("--rate", flags->settings.rate_per_second,
                                       "Requests a second, arriving at random (open loop)")
                          ->check(CLI::PositiveNumber);
  command
      ->add_option("--concurrency", flags->settings.concurrency, "Requests at a time (closed loop)")
      ->check(CLI::Range(1, 100000))
      ->excludes(rate)
      ->capture_default_str();
  command->add_option("--requests", flags->settings.num_requests, "Requests in all")
      ->check(CLI::Range(1, 10000000))
      ->capture_default_str();
  const std::string lengths = "128, 16:256 or lognormal:MEDIAN:SIGMA";
  command->add_option("--prompt-tokens", flags->prompt_tokens, "Length of prompts: " + lengths)
      ->capture_default_str();
  command->add_option("--output-tokens", flags->output_tokens, "Length of answers: " + lengths)
      ->capture_default_str();
  command->add_option("--temperature", flags->temperature)->capture_default_str();
  command->add_option("--seed", flags->settings.seed, "Same seed, same load")
      ->capture_default_str();
  command->add_flag("--json", flags->json, "Print the figures as JSON");
  command->callback([&line, flags] {
    line.connect.ready_replicas_only = true;
    line.chosen = [&line, flags](Client& client) { return Run(*flags, line.timeout(), client); };
  });
}

}  // namespace moed::client
