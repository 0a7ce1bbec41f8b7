// One request's way out: turns the tokens of its sequences into text, finds stop strings and calls
// the sink. Made by the submitting thread, then used by the output thread alone.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "runtime/engine/request.h"
#include "runtime/text/stop_matcher.h"
#include "runtime/text/tokenizer.h"

namespace moed::engine {

using PromptLogprobs = std::vector<std::vector<model::TokenLogprob>>;

// A token that the engine thread has accepted.
struct OutputToken {
  TokenWithLogprobs token;
  std::optional<FinishReason> finish = {};  // the sequence's last token
  bool is_end_token = false;                // an end-of-sequence or stop token id
  // With the request's first token, if asked for.
  std::unique_ptr<PromptLogprobs> prompt_logprobs = nullptr;
};

// What the streams have delivered, for the metrics.
struct OutputCounts {
  int64_t generation_tokens = 0;
  int64_t finished[kNumSequenceEnds] = {};
};

class OutputStream {
 public:
  // `tokenizer` may be null if the request wants neither text nor stop strings.
  OutputStream(const Request& request, const text::Tokenizer* tokenizer);

  // Takes the next token of sequence `index`; returns whether a stop string ended the sequence.
  // Tokens after the end were computed in vain and are dropped.
  bool Push(int index, OutputToken token, OutputCounts* counts);
  // The request has ended: sequences that have not finished were cancelled or have failed.
  void End(const absl::Status& status, OutputCounts* counts);
  // Sends what was pushed to sequence `index` since the last call.
  void Flush(int index);
  // Flushes all sequences and says goodbye; `usage.completion_tokens` is filled in here.
  void Done(const absl::Status& status, Usage usage);

 private:
  struct Sequence {
    std::unique_ptr<text::TokenStream> decoder;  // null: ids only
    text::StopMatcher matcher;
    Delta delta = {};  // not sent yet
    int64_t num_tokens = 0;
    std::optional<SequenceFinish> finish = {};
    bool finish_sent = false;

    void Finish(FinishReason reason);
  };

  // Text of one more token, or of the sequence's end; stop strings may set `finish`.
  void Decode(Sequence& sequence, const OutputToken& token);
  void AddText(Sequence& sequence, std::string_view text);

  const std::shared_ptr<OutputSink> sink_;
  const bool sends_text_;
  const bool include_stop_;
  const int64_t min_tokens_;
  std::vector<Sequence> sequences_;
};

}  // namespace moed::engine
