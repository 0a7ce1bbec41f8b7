#include "client/completion.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/quantities.h"

namespace moed::client {
namespace {

using nlohmann::json;

const char* NameOf(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_CANCELLED:
      return "cancelled";
    default:
      return "";
  }
}

// A v1::Token or v1::PromptToken.
template <typename Token>
json LogprobJson(const Token& token) {
  json entry = {{"id", token.id()}, {"logprob", nullptr}, {"top", json::array()}};
  if (token.has_logprob()) entry["logprob"] = token.logprob();
  for (const v1::TokenLogprob& top : token.top()) {
    entry["top"].push_back({{"id", top.id()}, {"logprob", top.logprob()}});
  }
  return entry;
}

json UsageJson(const v1::Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens()},
          {"completion_tokens", usage.completion_tokens()},
          {"cached_tokens", usage.cached_tokens()},
          {"time_to_first_token_seconds", usage.time_to_first_token_seconds()},
          {"queue_seconds", usage.queue_seconds()}};
}

json ExpertsJson(const v1::ExpertUsage& experts) {
  return {{"hits", experts.hits()},
          {"misses", experts.misses()},
          {"bytes_paged", experts.bytes_paged()},
          {"stall_seconds", experts.stall_seconds()}};
}

}  // namespace

void Completion::Add(const v1::GenerateResponse& response) {
  if (!response.request_id().empty()) request_id_ = response.request_id();
  if (response.has_delta()) {
    Sequence& sequence = SequenceAt(response.delta().index());
    sequence.text += response.delta().text();
    const auto& tokens = response.delta().tokens();
    sequence.tokens.insert(sequence.tokens.end(), tokens.begin(), tokens.end());
  } else if (response.has_prompt_logprobs()) {
    const auto& tokens = response.prompt_logprobs().tokens();
    prompt_tokens_.insert(prompt_tokens_.end(), tokens.begin(), tokens.end());
  } else if (response.has_finished()) {
    finished_ = response.finished();
    for (const v1::SequenceFinish& finish : finished_.sequences()) {
      SequenceAt(finish.index()).finish = finish;
    }
  }
}

const std::string& Completion::text(int index) const {
  static const std::string empty;
  return index < num_sequences() ? sequences_[index].text : empty;
}

Completion::Sequence& Completion::SequenceAt(int index) {
  // The server's own limit on n is far below; a larger index is not worth the memory.
  const size_t place = std::clamp(index, 0, 4095);
  if (place >= sequences_.size()) sequences_.resize(place + 1);
  return sequences_[place];
}

json Completion::SequenceJson(const Sequence& sequence) {
  json ids = json::array();
  json logprobs = json::array();
  for (const v1::Token& token : sequence.tokens) {
    ids.push_back(token.id());
    if (token.has_logprob()) logprobs.push_back(LogprobJson(token));
  }
  json result = {{"token_ids", ids},
                 {"text", sequence.text},
                 {"finish_reason", NameOf(sequence.finish.reason())},
                 {"logprobs", logprobs}};
  if (sequence.finish.has_matched_stop()) result["matched_stop"] = sequence.finish.matched_stop();
  if (sequence.finish.has_matched_token_id()) {
    result["matched_token_id"] = sequence.finish.matched_token_id();
  }
  return result;
}

json Completion::ToJson() const {
  json result = SequenceJson(sequences_.empty() ? Sequence{} : sequences_.front());
  result["request_id"] = request_id_;
  result["usage"] = UsageJson(usage());
  result["experts"] = ExpertsJson(usage().experts());
  if (!prompt_tokens_.empty()) {
    result["prompt_logprobs"] = json::array();
    for (const auto& token : prompt_tokens_)
      result["prompt_logprobs"].push_back(LogprobJson(token));
  }
  if (sequences_.size() > 1) {
    result["completions"] = json::array();
    for (const auto& sequence : sequences_) result["completions"].push_back(SequenceJson(sequence));
  }
  return result;
}

std::string Completion::Summary(double seconds) const {
  const double first = usage().time_to_first_token_seconds();
  // The first token belongs to the prompt's time.
  const double decoded = static_cast<double>(usage().completion_tokens() - num_sequences());
  const double rate = seconds > first ? std::max(0.0, decoded) / (seconds - first) : 0;
  std::string summary =
      absl::StrFormat("%d + %d tokens, first after %.3f s, then %.1f tokens/s",
                      usage().prompt_tokens(), usage().completion_tokens(), first, rate);
  const v1::ExpertUsage& experts = usage().experts();
  if (experts.hits() + experts.misses() > 0) {
    absl::StrAppendFormat(&summary, "; experts: %s hits, %s paged, %.3f s stalled",
                          Percent(experts.hits(), experts.hits() + experts.misses()),
                          Bytes(experts.bytes_paged()), experts.stall_seconds());
  }
  return summary;
}

}  // namespace moed::client
