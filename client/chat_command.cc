// moedctl chat: a conversation on the terminal, or of the lines of a pipe.

#include <unistd.h>

#include <iostream>
#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "client/cancel_on_interrupt.h"
#include "client/command.h"
#include "client/completion.h"
#include "client/sampling_flags.h"

namespace moed::client {
namespace {

struct ChatFlags {
  SamplingFlags sampling;
  std::string system;
  std::string model;
};

void Append(v1::ChatRequest& request, const std::string& role, const std::string& content) {
  v1::ChatMessage* message = request.add_messages();
  message->set_role(role);
  message->set_content(content);
}

// Streams the answer to stdout and adds it to the conversation. An interrupted answer stays as far
// as it came; after any other failure the question is taken back.
absl::Status Answer(v1::ChatRequest& request, absl::Duration timeout, Client& client) {
  Completion completion;
  Call call(timeout);
  const absl::Time start = absl::Now();
  absl::Status status;
  {
    const CancelOnInterrupt interrupt(call);
    status = client.Chat(request, call, [&](const v1::GenerateResponse& response) {
      completion.Add(response);
      if (response.has_delta()) std::cout << response.delta().text() << std::flush;
    });
  }
  std::cout << std::endl;
  if (!status.ok() && !absl::IsCancelled(status)) {
    request.mutable_messages()->RemoveLast();
    return status;
  }
  Append(request, "assistant", completion.text());
  if (status.ok()) {
    std::cerr << completion.Summary(absl::ToDoubleSeconds(absl::Now() - start)) << std::endl;
  }
  return absl::OkStatus();
}

absl::Status Run(const ChatFlags& flags, absl::Duration timeout, Client& client) {
  const bool interactive = isatty(STDIN_FILENO) != 0;
  if (interactive) std::cerr << "/reset starts anew, Ctrl-C stops an answer, Ctrl-D leaves.\n";
  v1::ChatRequest request;
  request.set_model(flags.model);
  absl::Status status =
      flags.sampling.Fill(*request.mutable_sampling(), *request.mutable_stopping());
  if (!status.ok()) return status;
  const auto reset = [&] {
    request.clear_messages();
    if (!flags.system.empty()) Append(request, "system", flags.system);
  };
  reset();
  std::string text;
  while (interactive && std::cerr << "> ", std::getline(std::cin, text)) {
    if (text == "/reset") {
      reset();
      continue;
    }
    if (text.empty()) continue;
    Append(request, "user", text);
    status = Answer(request, timeout, client);
    if (status.ok()) continue;
    if (!interactive) return status;
    std::cerr << absl::StatusCodeToString(status.code()) << ": " << status.message() << std::endl;
  }
  return absl::OkStatus();
}

}  // namespace

void AddChatCommand(CLI::App& app, CommandLine& line) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = app.add_subcommand("chat", "Hold a conversation; one line a message");
  command->add_option("--system", flags->system, "The system message");
  command->add_option("--model", flags->model, "Left out: the served model");
  flags->sampling.AddTo(*command);
  command->callback([&line, flags] {
    line.connect.ready_replicas_only = true;
    line.chosen = [&line, flags](Client& client) { return Run(*flags, line.timeout(), client); };
  });
}

}  // namespace moed::client
