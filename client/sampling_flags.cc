#include "client/sampling_flags.h"

#include <map>

#include "absl/status/statusor.h"
#include "client/flag_values.h"

namespace moed::client {

void SamplingFlags::AddTo(CLI::App& command) {
  const std::string group = "Sampling (left out: the model's defaults)";
  command.add_option("--temperature", temperature, "0: greedy")->group(group);
  command.add_option("--top-k", top_k, "Keep the k likeliest tokens; 0: all")->group(group);
  command.add_option("--top-p", top_p, "Keep the likeliest tokens up to this sum")->group(group);
  command.add_option("--min-p", min_p, "Drop tokens below this share of the best")->group(group);
  command.add_option("--seed", seed, "Same seed, same tokens")->group(group);
  command.add_option("--repetition-penalty", repetition_penalty)->group(group);
  command.add_option("--presence-penalty", presence_penalty)->group(group);
  command.add_option("--frequency-penalty", frequency_penalty)->group(group);
  command.add_option("--logit-bias", logit_bias, "ID=BIAS,ID=BIAS,...")->group(group);
  command.add_option("--logprobs", logprobs, "Log-probabilities with this many alternatives")
      ->group(group);
  command.add_option("--prompt-logprobs", prompt_logprobs, "The same for the prompt")->group(group);

  const std::string stops = "Stopping";
  command.add_option("--max-tokens", max_tokens, "Left out: the rest of the context")->group(stops);
  command.add_option("--min-tokens", min_tokens)->group(stops);
  command.add_option("--stop", stop, "Text that ends the answer; may be repeated")
      ->allow_extra_args(false)
      ->group(stops);
  command.add_option("--stop-token-ids", stop_token_ids, "ID,ID,...")->group(stops);
  command.add_flag("--ignore-eos", ignore_eos, "Go on after the end-of-text token")->group(stops);
  command.add_flag("--include-stop-text", include_stop_text)->group(stops);
}

absl::Status SamplingFlags::Fill(v1::SamplingParams& sampling, v1::StopConditions& stopping) const {
  const absl::StatusOr<std::map<int32_t, float>> biases = ParseLogitBias(logit_bias);
  if (!biases.ok()) return biases.status();
  const absl::StatusOr<std::vector<int32_t>> stop_ids = ParseTokenIds(stop_token_ids);
  if (!stop_ids.ok()) return stop_ids.status();

  if (temperature) sampling.set_temperature(*temperature);
  if (top_k) sampling.set_top_k(*top_k);
  if (top_p) sampling.set_top_p(*top_p);
  if (min_p) sampling.set_min_p(*min_p);
  if (repetition_penalty) sampling.set_repetition_penalty(*repetition_penalty);
  if (presence_penalty) sampling.set_presence_penalty(*presence_penalty);
  if (frequency_penalty) sampling.set_frequency_penalty(*frequency_penalty);
  if (seed) sampling.set_seed(*seed);
  if (logprobs) sampling.set_logprobs(*logprobs);
  if (prompt_logprobs) sampling.set_prompt_logprobs(*prompt_logprobs);
  for (const auto& [id, bias] : *biases) (*sampling.mutable_logit_bias())[id] = bias;

  if (max_tokens) stopping.set_max_tokens(*max_tokens);
  if (min_tokens) stopping.set_min_tokens(*min_tokens);
  for (const std::string& text : stop) stopping.add_stop(text);
  for (const int32_t id : *stop_ids) stopping.add_stop_token_ids(id);
  stopping.set_ignore_eos(ignore_eos);
  stopping.set_include_stop_text(include_stop_text);
  return absl::OkStatus();
}

}  // namespace moed::client
