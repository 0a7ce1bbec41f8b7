// moedctl info: what is served, and how.

#include <iostream>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/command.h"
#include "client/json_output.h"
#include "client/quantities.h"

namespace moed::client {
namespace {

void PrintLine(const char* name, const std::string& value) {
  if (!value.empty()) std::cout << absl::StrFormat("%-12s %s\n", name, value);
}

// "1.5M weights, 3.0M FLOPs, 6.1 MB read"; empty if the server does not say.
std::string Cost(const v1::ModelCost& cost) {
  if (cost.parameters() == 0) return "";
  return absl::StrCat(Count(static_cast<double>(cost.parameters())), " weights, ",
                      Count(static_cast<double>(cost.flops_per_token())), " FLOPs, ",
                      Bytes(static_cast<double>(cost.bytes_per_token())), " read");
}

// ", 75.3 % of bf16"; empty if it is bf16, or the server does not say.
std::string StoredRatio(const v1::GetModelResponse& model) {
  const double ratio = model.expert_stored_ratio();
  return ratio == 0 || ratio == 1 ? "" : absl::StrFormat(", %.1f %% of bf16", 100 * ratio);
}

void Print(const v1::GetModelResponse& model) {
  PrintLine("model", absl::StrCat(model.model(), " (", model.family(), ")"));
  PrintLine("parameters", absl::StrCat(Count(static_cast<double>(model.parameters())), ", ",
                                       Count(static_cast<double>(model.active_parameters())),
                                       " read for one token"));
  PrintLine("layers", absl::StrCat(model.num_layers(), ", ", model.num_moe_layers(),
                                   " with experts; hidden size ", model.hidden_size()));
  PrintLine("experts", absl::StrCat(model.num_experts(), " a layer, ", model.experts_per_token(),
                                    " a token, ", Bytes(static_cast<double>(model.expert_bytes())),
                                    " each (", model.expert_format(), StoredRatio(model), ")"));
  PrintLine("a token", Cost(model.active_cost()));
  PrintLine("if dense", Cost(model.dense_cost()));
  PrintLine("budget", absl::StrCat(model.expert_slots(), " experts fit of ",
                                   int64_t{model.num_moe_layers()} * model.num_experts(),
                                   ", policy ", model.expert_policy()));
  PrintLine("memory", absl::StrCat(Bytes(static_cast<double>(model.dense_bytes())), " dense, ",
                                   Bytes(static_cast<double>(model.kv_cache_bytes())), " KV"));
  PrintLine("context", absl::StrCat(model.max_model_len(), " tokens; ", model.max_num_seqs(),
                                    " sequences at once; vocabulary ", model.vocab_size()));
  PrintLine("text", absl::StrCat(model.has_tokenizer() ? "tokenizer" : "token ids only",
                                 model.has_chat_template() ? ", chat template" : ""));
  PrintLine("device", model.device());
  PrintLine("server", model.server_version());
}

absl::Status Run(bool json, absl::Duration timeout, Client& client) {
  Call call(timeout);
  const absl::StatusOr<v1::GetModelResponse> model = client.GetModel({}, call);
  if (!model.ok()) return model.status();
  if (json) return PrintJson(*model, std::cout);
  Print(*model);
  return absl::OkStatus();
}

}  // namespace

void AddInfoCommand(CLI::App& app, CommandLine& line) {
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("info", "Show the served model");
  command->add_flag("--json", *json, "Print the whole response as JSON");
  command->callback([&line, json] {
    line.chosen = [&line, json](Client& client) { return Run(*json, line.timeout(), client); };
  });
}

}  // namespace moed::client
