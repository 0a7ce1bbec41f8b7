// What a client asks of the engine, and how it hears back. Request is a value made by
// server/translate; OutputSink is implemented by the server and called by the engine's output
// thread, never by the engine thread. Calls on one sink never overlap.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/model/sampling.h"
#include "runtime/model/step.h"

namespace moed::engine {

enum class FinishReason : uint8_t { kStop, kLength, kCancelled };
// Counts of ended sequences are arrays by FinishReason, with the failed ones at the end.
inline constexpr int kFailedSequence = 3;
inline constexpr int kNumSequenceEnds = 4;

struct TokenWithLogprobs {
  int32_t id = 0;
  float logprob = 0;
  std::vector<model::TokenLogprob> top = {};
};

// Some new tokens of one of a request's n sequences.
struct Delta {
  int index = 0;  // which of the n
  std::vector<TokenWithLogprobs> tokens = {};
  std::string text = {};  // empty when served by token ids, or while text is held back
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;  // over all n sequences
  int64_t cached_tokens = 0;
  double time_to_first_token_seconds = 0;
  double queue_seconds = 0;
  model::ExpertShare experts;
};

struct SequenceFinish {
  int index = 0;
  FinishReason reason = FinishReason::kStop;
  std::optional<std::string> matched_stop = {};
  std::optional<int32_t> matched_token = {};  // an end-of-sequence or stop token id
};

class OutputSink {
 public:
  virtual ~OutputSink() = default;
  virtual void OnPromptLogprobs(std::vector<std::vector<model::TokenLogprob>> logprobs) = 0;
  virtual void OnDelta(Delta delta) = 0;
  virtual void OnSequenceFinish(SequenceFinish finish) = 0;
  // Last call, exactly once for each accepted request. Not OK: the request failed (UNAVAILABLE,
  // DEADLINE_EXCEEDED, CANCELLED, INTERNAL).
  virtual void OnDone(const absl::Status& status, const Usage& usage) = 0;
};

struct Request {
  std::string id;  // unique among running requests; made up if empty
  std::vector<int32_t> prompt;
  model::SamplingParams sampling;
  int n = 1;
  int64_t max_tokens = 0;  // 0: the rest of the context
  int64_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<int32_t> stop_token_ids;
  std::vector<std::string> stop;  // needs a tokenizer
  bool include_stop = false;
  bool detokenize = true;  // false: deltas carry ids only
  bool skip_special_tokens = true;
  int prompt_logprobs = -1;
  absl::Time deadline = absl::InfiniteFuture();
  std::shared_ptr<OutputSink> sink;
};

}  // namespace moed::engine
