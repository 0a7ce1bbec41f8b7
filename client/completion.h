// What a Generate or Chat stream amounted to: its events put together, as JSON for scripts and as a
// line for people. One per request; not thread-safe.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "proto/moed/v1/inference.pb.h"

namespace moed::client {

class Completion {
 public:
  void Add(const v1::GenerateResponse& response);

  const std::string& text(int index = 0) const;
  const v1::Usage& usage() const { return finished_.usage(); }
  int num_sequences() const { return static_cast<int>(sequences_.size()); }

  // {token_ids, text, finish_reason, usage, logprobs, experts, ...} of the first sequence; with
  // more than one, each is also in `completions`.
  nlohmann::json ToJson() const;
  // "5 + 20 tokens, 61.3 tokens/s, ..."; `seconds`: the whole call as the client saw it.
  std::string Summary(double seconds) const;

 private:
  struct Sequence {
    std::string text;
    std::vector<v1::Token> tokens;
    v1::SequenceFinish finish;
  };
  Sequence& SequenceAt(int index);
  static nlohmann::json SequenceJson(const Sequence& sequence);

  std::string request_id_;
  std::vector<Sequence> sequences_;
  std::vector<v1::PromptToken> prompt_tokens_;
  v1::Finished finished_;
};

}  // namespace moed::client
