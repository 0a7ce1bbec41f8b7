// moedctl generate: one prompt, its text as it comes or one JSON object.

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "client/command.h"
#include "client/completion.h"
#include "client/flag_values.h"
#include "client/sampling_flags.h"

namespace moed::client {
namespace {

struct GenerateFlags {
  SamplingFlags sampling;
  std::string prompt;
  std::string prompt_tokens;
  bool has_prompt_tokens = false;
  std::string model;
  std::optional<int32_t> n;
  bool keep_special_tokens = false;
  bool json = false;
};

absl::StatusOr<v1::GenerateRequest> ToRequest(const GenerateFlags& flags) {
  v1::GenerateRequest request;
  request.set_model(flags.model);
  if (flags.has_prompt_tokens) {
    const absl::StatusOr<std::vector<int32_t>> ids = ParseTokenIds(flags.prompt_tokens);
    if (!ids.ok()) return ids.status();
    request.mutable_tokens()->mutable_ids()->Add(ids->begin(), ids->end());
  } else {
    request.set_text(flags.prompt);
  }
  if (flags.n) request.set_n(*flags.n);
  if (flags.keep_special_tokens) request.set_skip_special_tokens(false);
  absl::Status filled =
      flags.sampling.Fill(*request.mutable_sampling(), *request.mutable_stopping());
  if (!filled.ok()) return filled;
  return request;
}

void PrintEach(const Completion& completion) {
  for (int i = 0; i < completion.num_sequences(); ++i) {
    std::cout << "[" << i << "] " << completion.text(i) << "\n";
  }
}

absl::Status Run(const GenerateFlags& flags, absl::Duration timeout, Client& client) {
  const absl::StatusOr<v1::GenerateRequest> request = ToRequest(flags);
  if (!request.ok()) return request.status();
  const bool streams = !flags.json && flags.n.value_or(1) == 1;
  Completion completion;
  Call call(timeout);
  const absl::Time start = absl::Now();
  const auto on_response = [&](const v1::GenerateResponse& response) {
    completion.Add(response);
    if (streams && response.has_delta()) std::cout << response.delta().text() << std::flush;
  };
  absl::Status status = client.Generate(*request, call, on_response);
  if (streams) std::cout << std::endl;
  if (!status.ok()) return status;
  if (flags.json) {
    std::cout << completion.ToJson().dump() << std::endl;
    return absl::OkStatus();
  }
  if (!streams) PrintEach(completion);
  std::cerr << completion.Summary(absl::ToDoubleSeconds(absl::Now() - start)) << std::endl;
  return absl::OkStatus();
}

}  // namespace

void AddGenerateCommand(CLI::App& app, CommandLine& line) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command = app.add_subcommand("generate", "Continue a prompt");
  CLI::Option* prompt = command->add_option("--prompt", flags->prompt, "The text to continue");
  CLI::Option* tokens =
      command->add_option("--prompt-tokens", flags->prompt_tokens, "The same as ids: 5,6,7")
          ->excludes(prompt);
  command->add_option("--model", flags->model, "Left out: the served model");
  command->add_option("--n", flags->n, "Sequences from the one prompt");
  command->add_flag("--keep-special-tokens", flags->keep_special_tokens,
                    "Leave control tokens in the text");
  command->add_flag("--json", flags->json, "Print one JSON object at the end");
  flags->sampling.AddTo(*command);
  command->callback([&line, flags, tokens] {
    flags->has_prompt_tokens = tokens->count() > 0;
    line.connect.ready_replicas_only = true;
    line.chosen = [&line, flags](Client& client) { return Run(*flags, line.timeout(), client); };
  });
}

}  // namespace moed::client
