#include "server/translate_request.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/engine/validate_request.h"
#include "runtime/model/sampling.h"
#include "server/encode_prompt.h"
#include "server/grpc_status.h"

namespace moed::server {
namespace {

constexpr size_t kMaxRequestIdBytes = 128;
constexpr int kMaxStopTokenIds = 64;
constexpr int kMaxLogitBiases = 1024;

// The client's value, else the model's, else the neutral one.
template <typename T, typename Default>
T Choose(bool given, T value, const std::optional<Default>& model_default, T neutral) {
  if (given) return value;
  return model_default ? static_cast<T>(*model_default) : neutral;
}

uint64_t RandomSeed() {
  thread_local absl::BitGen generator;
  return absl::Uniform<uint64_t>(generator);
}

model::SamplingParams ToSamplingParams(const v1::SamplingParams& wire,
                                       const model::GenerationDefaults& defaults) {
  const model::SamplingParams neutral;
  model::SamplingParams params;
  params.temperature =
      Choose(wire.has_temperature(), wire.temperature(), defaults.temperature, neutral.temperature);
  params.top_k = Choose(wire.has_top_k(), wire.top_k(), defaults.top_k, neutral.top_k);
  params.top_p = Choose(wire.has_top_p(), wire.top_p(), defaults.top_p, neutral.top_p);
  params.min_p = Choose(wire.has_min_p(), wire.min_p(), defaults.min_p, neutral.min_p);
  params.repetition_penalty = Choose(wire.has_repetition_penalty(), wire.repetition_penalty(),
                                     defaults.repetition_penalty, neutral.repetition_penalty);
  params.presence_penalty = wire.presence_penalty();
  params.frequency_penalty = wire.frequency_penalty();
  params.seed = wire.has_seed() ? wire.seed() : RandomSeed();
  params.logit_bias.assign(wire.logit_bias().begin(), wire.logit_bias().end());
  std::sort(params.logit_bias.begin(), params.logit_bias.end());
  if (wire.has_logprobs()) params.logprobs = wire.logprobs();
  return params;
}

// The messages of ValidateSamplingParams begin with the field's name.
absl::Status AsInvalidField(const absl::Status& status) {
  const std::string message(status.message());
  const std::pair<std::string, std::string> parts =
      absl::StrSplit(message, absl::MaxSplits(' ', 1));
  return InvalidField(absl::StrCat("sampling.", parts.first), parts.second);
}

absl::Status CheckSampling(const v1::SamplingParams& wire, const model::SamplingParams& params,
                           const ServedModel& model) {
  if (wire.logit_bias_size() > kMaxLogitBiases) {
    return InvalidField("sampling.logit_bias",
                        absl::StrCat("has ", wire.logit_bias_size(), " entries; at most ",
                                     kMaxLogitBiases, " are taken"));
  }
  for (const auto& [field, given, value] :
       {std::tuple{"sampling.logprobs", wire.has_logprobs(), wire.logprobs()},
        std::tuple{"sampling.prompt_logprobs", wire.has_prompt_logprobs(),
                   wire.prompt_logprobs()}}) {
    if (given && (value < 0 || value > model::kMaxLogprobs)) {
      return InvalidField(
          field, absl::StrCat("is ", value, "; it must be from 0 to ", model::kMaxLogprobs));
    }
  }
  const int vocab_size = static_cast<int>(model.description.vocab_size);
  const absl::Status status = model::ValidateSamplingParams(params, vocab_size);
  return status.ok() ? status : AsInvalidField(status);
}

absl::Status CheckStopStrings(const v1::StopConditions& wire, const ServedModel& model) {
  if (wire.stop().empty()) return absl::OkStatus();
  if (model.tokenizer == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("model \"", model.name,
                     "\" has no tokenizer.json, so stop strings cannot be found; use "
                     "stop_token_ids"));
  }
  if (wire.stop_size() > engine::kMaxStopStrings) {
    return InvalidField("stopping.stop",
                        absl::StrCat("has ", wire.stop_size(), " strings; at most ",
                                     engine::kMaxStopStrings, " are taken"));
  }
  for (const std::string& stop : wire.stop()) {
    if (!stop.empty() && std::ssize(stop) <= engine::kMaxStopStringBytes) continue;
    return InvalidField("stopping.stop",
                        absl::StrCat("a string has ", stop.size(), " bytes; it must have 1 to ",
                                     engine::kMaxStopStringBytes));
  }
  return absl::OkStatus();
}

// Fills max_tokens and min_tokens. More than the context holds is cut to it; 0 stays "the rest".
absl::Status SetTokenLimits(const v1::StopConditions& wire, const ServedModel& model,
                            engine::Request* request) {
  const int64_t room =
      model.description.max_model_len - static_cast<int64_t>(request->prompt.size());
  if (wire.has_max_tokens() && wire.max_tokens() < 1) {
    return InvalidField("stopping.max_tokens",
                        absl::StrCat("is ", wire.max_tokens(), "; it must be at least 1"));
  }
  request->max_tokens = std::min(room, Choose<int64_t>(wire.has_max_tokens(), wire.max_tokens(),
                                                       model.generation.max_new_tokens, room));
  if (wire.min_tokens() < 0 || wire.min_tokens() > request->max_tokens) {
    return InvalidField("stopping.min_tokens",
                        absl::StrCat("is ", wire.min_tokens(),
                                     "; it must be from 0 to max_tokens, ", request->max_tokens));
  }
  request->min_tokens = wire.min_tokens();
  return absl::OkStatus();
}

absl::Status SetStopping(const v1::StopConditions& wire, const ServedModel& model,
                         engine::Request* request) {
  if (absl::Status status = SetTokenLimits(wire, model, request); !status.ok()) return status;
  if (absl::Status status = CheckStopStrings(wire, model); !status.ok()) return status;
  if (wire.stop_token_ids_size() > kMaxStopTokenIds) {
    return InvalidField("stopping.stop_token_ids",
                        absl::StrCat("has ", wire.stop_token_ids_size(), " ids; at most ",
                                     kMaxStopTokenIds, " are taken"));
  }
  request->stop_token_ids.assign(wire.stop_token_ids().begin(), wire.stop_token_ids().end());
  request->stop.assign(wire.stop().begin(), wire.stop().end());
  request->ignore_eos = wire.ignore_eos();
  request->include_stop = wire.include_stop_text();
  return CheckTokenIds("stopping.stop_token_ids", request->stop_token_ids, model);
}

absl::Status SetRequestId(const std::string& id, engine::Request* request) {
  const bool printable = std::all_of(id.begin(), id.end(), [](char c) {
    return absl::ascii_isgraph(static_cast<unsigned char>(c));
  });
  if (id.size() > kMaxRequestIdBytes || !printable) {
    return InvalidField("request_id", absl::StrCat("must be at most ", kMaxRequestIdBytes,
                                                   " printable ASCII characters without blanks"));
  }
  request->id = id.empty() ? absl::StrCat("moed-", absl::Hex(RandomSeed(), absl::kZeroPad16)) : id;
  return absl::OkStatus();
}

// What GenerateRequest and ChatRequest share; `request` has its prompt.
template <typename WireRequest>
absl::Status SetCommonFields(const WireRequest& wire, absl::string_view prompt_field,
                             const ServedModel& model, engine::Request* request) {
  if (absl::Status status = CheckPromptLength(prompt_field, request->prompt.size(), model);
      !status.ok()) {
    return status;
  }
  absl::Status status = CheckTokenIds(prompt_field, request->prompt, model);
  if (status.ok()) status = SetRequestId(wire.request_id(), request);
  if (!status.ok()) return status;
  request->sampling = ToSamplingParams(wire.sampling(), model.generation);
  status = CheckSampling(wire.sampling(), request->sampling, model);
  if (!status.ok()) return status;
  if (wire.sampling().has_prompt_logprobs()) {
    request->prompt_logprobs = wire.sampling().prompt_logprobs();
  }
  request->n = wire.has_n() ? wire.n() : 1;
  if (request->n < 1 || request->n > engine::kMaxSequencesPerRequest) {
    return InvalidField("n", absl::StrCat("is ", request->n, "; it must be from 1 to ",
                                          engine::kMaxSequencesPerRequest));
  }
  return SetStopping(wire.stopping(), model, request);
}

absl::StatusOr<std::vector<int32_t>> PromptTokens(const v1::GenerateRequest& wire,
                                                  const ServedModel& model) {
  switch (wire.prompt_case()) {
    case v1::GenerateRequest::kText:
      return EncodeText("text", wire.text(), /*add_special_tokens=*/true, model);
    case v1::GenerateRequest::kTokens:
      return std::vector<int32_t>(wire.tokens().ids().begin(), wire.tokens().ids().end());
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return InvalidField("prompt", "neither `text` nor `tokens` is set");
}

}  // namespace

absl::Status CheckModelName(const ServedModel& model, absl::string_view name) {
  if (name.empty() || name == model.name) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("model \"", name.substr(0, 200),
                                          "\" is not served here; this server serves \"",
                                          model.name, "\""));
}

absl::StatusOr<engine::Request> ToEngineRequest(const v1::GenerateRequest& wire,
                                                const ServedModel& model) {
  if (absl::Status status = CheckModelName(model, wire.model()); !status.ok()) return status;
  absl::StatusOr<std::vector<int32_t>> prompt = PromptTokens(wire, model);
  if (!prompt.ok()) return prompt.status();
  engine::Request request;
  request.prompt = *std::move(prompt);
  const char* prompt_field = wire.has_text() ? "text" : "tokens";
  absl::Status status = SetCommonFields(wire, prompt_field, model, &request);
  if (!status.ok()) return status;
  request.detokenize = model.tokenizer != nullptr && !wire.return_token_ids_only();
  request.skip_special_tokens = !wire.has_skip_special_tokens() || wire.skip_special_tokens();
  return request;
}

absl::StatusOr<engine::Request> ToEngineRequest(const v1::ChatRequest& wire,
                                                const ServedModel& model) {
  if (absl::Status status = CheckModelName(model, wire.model()); !status.ok()) return status;
  absl::StatusOr<std::vector<int32_t>> prompt = EncodeChat("messages", wire.messages(), model);
  if (!prompt.ok()) return prompt.status();
  engine::Request request;
  request.prompt = *std::move(prompt);
  absl::Status status = SetCommonFields(wire, "messages", model, &request);
  if (!status.ok()) return status;
  return request;
}

absl::StatusOr<std::vector<int32_t>> ToTokenIds(const v1::TokenizeRequest& wire,
                                                const ServedModel& model) {
  if (absl::Status status = CheckModelName(model, wire.model()); !status.ok()) return status;
  switch (wire.input_case()) {
    case v1::TokenizeRequest::kText:
      return EncodeText("text", wire.text(),
                        !wire.has_add_special_tokens() || wire.add_special_tokens(), model);
    case v1::TokenizeRequest::kChat:
      return EncodeChat("chat.messages", wire.chat().messages(), model);
    case v1::TokenizeRequest::INPUT_NOT_SET:
      break;
  }
  return InvalidField("input", "neither `text` nor `chat` is set");
}

absl::StatusOr<std::string> ToText(const v1::DetokenizeRequest& wire, const ServedModel& model) {
  if (absl::Status status = CheckModelName(model, wire.model()); !status.ok()) return status;
  if (model.tokenizer == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("model \"", model.name, "\" has no tokenizer.json"));
  }
  const std::vector<int32_t> ids(wire.token_ids().begin(), wire.token_ids().end());
  if (absl::Status status = CheckTokenIds("token_ids", ids, model); !status.ok()) return status;
  return model.tokenizer->Decode(ids,
                                 !wire.has_skip_special_tokens() || wire.skip_special_tokens());
}

}  // namespace moed::server
