#include "server/stream_buffer.h"

#include <utility>

#include "server/translate_response.h"

namespace moed::server {

StreamBuffer::Options StreamBuffer::OptionsFor(const engine::Request& request) {
  return {.with_logprobs = request.sampling.logprobs >= 0,
          .first_prompt_token = request.prompt.front(),
          .request_id = request.id};
}

void StreamBuffer::PushPromptLogprobs(std::vector<std::vector<model::TokenLogprob>> logprobs) {
  prompt_logprobs_ = std::move(logprobs);
}

void StreamBuffer::PushSequenceFinish(engine::SequenceFinish finish) {
  finishes_.push_back(std::move(finish));
}

void StreamBuffer::PushFinished(const engine::Usage& usage) { usage_ = usage; }

void StreamBuffer::Clear() {
  deltas_.Clear();
  prompt_logprobs_.reset();
  finishes_.clear();
  usage_.reset();
}

bool StreamBuffer::empty() const { return deltas_.empty() && !prompt_logprobs_ && !usage_; }

bool StreamBuffer::Take(v1::GenerateResponse* message) {
  if (message->request_id().empty()) message->set_request_id(options_.request_id);
  if (prompt_logprobs_) {
    FillPromptLogprobs(options_.first_prompt_token, *prompt_logprobs_,
                       message->mutable_prompt_logprobs());
    prompt_logprobs_.reset();
    return true;
  }
  if (!deltas_.empty()) {
    v1::Delta* delta = message->mutable_delta();
    delta->Clear();  // keeps the memory of the last one
    engine::Delta oldest = deltas_.Pop();
    delta->set_index(oldest.index);
    delta->set_text(std::move(oldest.text));
    AppendTokens(oldest.tokens, options_.with_logprobs, delta->mutable_tokens());
    return true;
  }
  if (!usage_) return false;
  v1::Finished* finished = message->mutable_finished();
  for (const engine::SequenceFinish& finish : finishes_) {
    FillSequenceFinish(finish, finished->add_sequences());
  }
  FillUsage(*usage_, finished->mutable_usage());
  usage_.reset();
  return true;
}

}  // namespace moed::server
