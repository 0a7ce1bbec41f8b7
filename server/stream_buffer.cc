#include "server/stream_buffer.h"

#include <iterator>
#include <utility>

#include "server/translate_response.h"

namespace moed::server {
namespace {

// Additive, so that joining changes no sum.
size_t PayloadBytes(const engine::Delta& delta) {
  size_t bytes = delta.text.size();
  for (const engine::TokenWithLogprobs& token : delta.tokens) {
    bytes += sizeof(token) + token.top.size() * sizeof(model::TokenLogprob);
  }
  return bytes;
}

}  // namespace

bool StreamBuffer::Push(engine::Delta delta) {
  const size_t bytes = PayloadBytes(delta);
  if (bytes_ + bytes > options_.max_bytes) return false;
  bytes_ += bytes;
  if (deltas_.size() < options_.max_messages || !Join(delta)) deltas_.push_back(std::move(delta));
  return true;
}

bool StreamBuffer::Join(engine::Delta& delta) {
  for (auto queued = deltas_.rbegin(); queued != deltas_.rend(); ++queued) {
    if (queued->index != delta.index) continue;
    queued->text += delta.text;
    queued->tokens.insert(queued->tokens.end(), std::make_move_iterator(delta.tokens.begin()),
                          std::make_move_iterator(delta.tokens.end()));
    return true;
  }
  return false;
}

void StreamBuffer::PushPromptLogprobs(std::vector<std::vector<model::TokenLogprob>> logprobs) {
  prompt_logprobs_ = std::move(logprobs);
}

void StreamBuffer::PushSequenceFinish(engine::SequenceFinish finish) {
  finishes_.push_back(std::move(finish));
}

void StreamBuffer::PushFinished(const engine::Usage& usage) { usage_ = usage; }

void StreamBuffer::Clear() {
  deltas_.clear();
  bytes_ = 0;
  prompt_logprobs_.reset();
  finishes_.clear();
  usage_.reset();
}

bool StreamBuffer::empty() const { return deltas_.empty() && !prompt_logprobs_ && !usage_; }

bool StreamBuffer::Take(v1::GenerateResponse* message) {
  if (prompt_logprobs_) {
    FillPromptLogprobs(options_.first_prompt_token, *prompt_logprobs_,
                       message->mutable_prompt_logprobs());
    prompt_logprobs_.reset();
    return true;
  }
  if (!deltas_.empty()) {
    v1::Delta* delta = message->mutable_delta();
    delta->Clear();  // keeps the memory of the last one
    engine::Delta& oldest = deltas_.front();
    bytes_ -= PayloadBytes(oldest);
    delta->set_index(oldest.index);
    delta->set_text(std::move(oldest.text));
    AppendTokens(oldest.tokens, options_.with_logprobs, delta->mutable_tokens());
    deltas_.pop_front();
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
