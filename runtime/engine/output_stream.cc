#include "runtime/engine/output_stream.h"

#include <utility>

namespace moed::engine {

OutputStream::OutputStream(const Request& request, const text::Tokenizer* tokenizer)
    : sink_(request.sink),
      sends_text_(request.detokenize),
      include_stop_(request.include_stop),
      min_tokens_(request.min_tokens) {
  const bool decodes = request.detokenize || !request.stop.empty();
  for (int index = 0; index < request.n; ++index) {
    sequences_.push_back(
        {.decoder = decodes ? tokenizer->NewStream(request.skip_special_tokens) : nullptr,
         .matcher = text::StopMatcher(request.stop, request.include_stop),
         .delta = {.index = index}});
  }
}

void OutputStream::Sequence::Finish(FinishReason reason) {
  finish.emplace();
  finish->index = delta.index;
  finish->reason = reason;
}

bool OutputStream::Push(int index, OutputToken token, OutputCounts* counts) {
  Sequence& sequence = sequences_[index];
  if (sequence.finish) return false;
  if (token.prompt_logprobs) sink_->OnPromptLogprobs(std::move(*token.prompt_logprobs));
  ++sequence.num_tokens;
  ++counts->generation_tokens;
  if (sequence.decoder) Decode(sequence, token);
  const bool matched = sequence.finish.has_value();
  if (!matched && token.finish) {
    sequence.Finish(*token.finish);
    if (token.is_end_token) sequence.finish->matched_token = token.token.id;
  }
  if (sequence.finish) ++counts->finished[static_cast<int>(sequence.finish->reason)];
  sequence.delta.tokens.push_back(std::move(token.token));
  return matched;
}

void OutputStream::Decode(Sequence& sequence, const OutputToken& token) {
  if (!token.is_end_token || include_stop_) {
    const auto text = sequence.decoder->Push(token.token.id);
    if (text.ok()) AddText(sequence, *text);
  }
  if (!token.finish || sequence.finish) return;
  const auto rest = sequence.decoder->Finish();
  if (rest.ok()) AddText(sequence, *rest);
  if (!sequence.finish && sends_text_) sequence.delta.text += sequence.matcher.Finish();
}

void OutputStream::AddText(Sequence& sequence, std::string_view text) {
  // Before min_tokens the model's text is not searched, as its end tokens are not allowed.
  if (sequence.num_tokens <= min_tokens_) {
    if (sends_text_) sequence.delta.text += text;
    return;
  }
  text::StopMatcher::Result result = sequence.matcher.Push(text);
  if (sends_text_) sequence.delta.text += result.text;
  if (!result.matched) return;
  sequence.Finish(FinishReason::kStop);
  sequence.finish->matched_stop = std::move(result.matched);
}

void OutputStream::End(const absl::Status& status, OutputCounts* counts) {
  for (Sequence& sequence : sequences_) {
    if (sequence.finish) continue;
    if (absl::IsCancelled(status)) {
      sequence.Finish(FinishReason::kCancelled);
      ++counts->finished[static_cast<int>(FinishReason::kCancelled)];
    } else {
      ++counts->finished[kFailedSequence];
    }
  }
}

void OutputStream::Flush(int index) {
  Sequence& sequence = sequences_[index];
  if (!sequence.delta.tokens.empty()) {
    sink_->OnDelta(std::exchange(sequence.delta, {.index = index}));
  }
  if (!sequence.finish || sequence.finish_sent) return;
  sequence.finish_sent = true;
  sink_->OnSequenceFinish(*sequence.finish);
}

void OutputStream::Done(const absl::Status& status, Usage usage) {
  for (Sequence& sequence : sequences_) {
    Flush(sequence.delta.index);
    usage.completion_tokens += sequence.num_tokens;
  }
  sink_->OnDone(status, usage);
}

}  // namespace moed::engine
