#include "runtime/engine/validate_request.h"

#include "absl/strings/str_cat.h"

namespace moed::engine {
namespace {

absl::Status CheckRange(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, "; it must be from ", low, " to ", high));
}

absl::Status CheckTokenIds(const char* field, const std::vector<int32_t>& ids, int vocab_size) {
  for (int32_t id : ids) {
    if (absl::Status status = CheckRange(field, id, 0, vocab_size - 1); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckPrompt(const Request& request, int vocab_size, int64_t max_sequence_tokens) {
  const int64_t tokens = static_cast<int64_t>(request.prompt.size());
  if (tokens == 0) return absl::InvalidArgumentError("the prompt has no tokens");
  if (tokens >= max_sequence_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt has ", tokens, " tokens; this server takes at most ",
                     max_sequence_tokens - 1, ", so that one more fits the context"));
  }
  return CheckTokenIds("a token id of the prompt", request.prompt, vocab_size);
}

absl::Status CheckLengths(const Request& request) {
  constexpr int64_t kAny = INT64_MAX;
  if (absl::Status status = CheckRange("n", request.n, 1, kMaxSequencesPerRequest); !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckRange("max_tokens", request.max_tokens, 0, kAny); !status.ok()) {
    return status;
  }
  const int64_t max_tokens = request.max_tokens == 0 ? kAny : request.max_tokens;
  return CheckRange("min_tokens", request.min_tokens, 0, max_tokens);
}

absl::Status CheckStops(const Request& request, int vocab_size) {
  const int64_t count = static_cast<int64_t>(request.stop.size());
  absl::Status status = CheckRange("the number of stop strings", count, 0, kMaxStopStrings);
  for (const std::string& stop : request.stop) {
    if (!status.ok()) return status;
    const int64_t bytes = static_cast<int64_t>(stop.size());
    status = CheckRange("the length of a stop string", bytes, 1, kMaxStopStringBytes);
  }
  if (!status.ok()) return status;
  return CheckTokenIds("a token id of stop_token_ids", request.stop_token_ids, vocab_size);
}

}  // namespace

absl::Status ValidateRequest(const Request& request, const EngineOptions& options,
                             int64_t max_sequence_tokens, bool has_tokenizer) {
  if (request.sink == nullptr) return absl::InvalidArgumentError("the request has no sink");
  if (!has_tokenizer && (request.detokenize || !request.stop.empty())) {
    return absl::FailedPreconditionError(
        "this checkpoint has no tokenizer.json: ask for token ids only, without stop strings");
  }
  const int vocab_size = options.vocab_size;
  absl::Status status = CheckPrompt(request, vocab_size, max_sequence_tokens);
  if (status.ok()) status = CheckLengths(request);
  if (status.ok()) status = CheckStops(request, vocab_size);
  if (status.ok()) {
    status = CheckRange("prompt_logprobs", request.prompt_logprobs, -1, model::kMaxLogprobs);
  }
  if (status.ok()) status = model::ValidateSamplingParams(request.sampling, vocab_size);
  return status;
}

}  // namespace moed::engine
