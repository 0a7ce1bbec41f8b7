#include "server/vllm_stream_buffer.h"

#include <iterator>
#include <span>

namespace moed::server {
namespace {

using vllm::grpc::engine::InputLogProbs;
using vllm::grpc::engine::OutputLogProbs;
using vllm::grpc::engine::TopLogProbs;

void FillTop(std::span<const model::TokenLogprob> top, TopLogProbs* message) {
  for (const model::TokenLogprob& alternative : top) {
    message->add_token_ids(static_cast<uint32_t>(alternative.id));
    message->add_values(alternative.logprob);
  }
}

void FillOutputLogprobs(std::span<const engine::TokenWithLogprobs> tokens,
                        OutputLogProbs* message) {
  for (const engine::TokenWithLogprobs& token : tokens) {
    message->add_token_ids(static_cast<uint32_t>(token.id));
    message->add_token_logprobs(token.logprob);
    FillTop(token.top, message->add_top_logprobs());
  }
}

void FillInputLogprobs(int32_t first_token,
                       std::span<const std::vector<model::TokenLogprob>> logprobs,
                       InputLogProbs* message) {
  message->add_token_ids(static_cast<uint32_t>(first_token));
  message->add_token_logprobs();
  message->add_top_logprobs();
  for (const std::vector<model::TokenLogprob>& entry : logprobs) {
    if (entry.empty()) continue;
    message->add_token_ids(static_cast<uint32_t>(entry.front().id));
    message->add_token_logprobs()->set_value(entry.front().logprob);
    FillTop(std::span(entry).subspan(1), message->add_top_logprobs());
  }
}

const char* ReasonName(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kStop:
      return "stop";
    case engine::FinishReason::kLength:
      return "length";
    case engine::FinishReason::kCancelled:
      return "abort";
  }
  return "error";
}

}  // namespace

VllmStreamBuffer::VllmStreamBuffer(const Options& options)
    : options_(options), deltas_(options.max_messages, options.max_bytes), sequences_(options.n) {}

VllmStreamBuffer::Options VllmStreamBuffer::OptionsFor(const engine::Request& request) {
  return {.with_logprobs = request.sampling.logprobs >= 0,
          .n = request.n,
          .first_prompt_token = request.prompt.front(),
          .prompt_tokens = static_cast<uint32_t>(request.prompt.size())};
}

bool VllmStreamBuffer::Push(engine::Delta delta) {
  Sequence& sequence = sequences_[delta.index];
  sequence.num_tokens += static_cast<uint32_t>(delta.tokens.size());
  if (options_.stream) return deltas_.Push(std::move(delta));
  for (const engine::TokenWithLogprobs& token : delta.tokens) {
    num_gathered_ += 1 + token.top.size();
  }
  if (num_gathered_ > options_.max_gathered) return false;
  sequence.gathered.insert(sequence.gathered.end(), std::make_move_iterator(delta.tokens.begin()),
                           std::make_move_iterator(delta.tokens.end()));
  return true;
}

void VllmStreamBuffer::PushPromptLogprobs(std::vector<std::vector<model::TokenLogprob>> logprobs) {
  prompt_logprobs_ = std::move(logprobs);
}

void VllmStreamBuffer::PushSequenceFinish(engine::SequenceFinish finish) {
  finishes_.push_back(std::move(finish));
}

void VllmStreamBuffer::Clear() {
  deltas_.Clear();
  finishes_.clear();
  prompt_logprobs_.clear();
  sequences_.assign(sequences_.size(), {});
}

bool VllmStreamBuffer::Take(Response* message) {
  message->Clear();
  if (!deltas_.empty()) {
    FillChunk(deltas_.Pop(), message->mutable_chunk());
    return true;
  }
  if (finishes_.empty()) return false;
  FillComplete(finishes_.front(), message->mutable_complete());
  finishes_.pop_front();
  return true;
}

template <typename Message>
void VllmStreamBuffer::AddInputLogprobs(int index, Message* message) {
  if (sequences_[index].started) return;
  sequences_[index].started = true;
  if (prompt_logprobs_.empty()) return;
  FillInputLogprobs(options_.first_prompt_token, prompt_logprobs_,
                    message->mutable_input_logprobs());
}

void VllmStreamBuffer::FillChunk(const engine::Delta& delta, Chunk* chunk) {
  chunk->set_index(delta.index);
  chunk->set_prompt_tokens(options_.prompt_tokens);
  chunk->set_completion_tokens(static_cast<uint32_t>(delta.tokens.size()));
  for (const engine::TokenWithLogprobs& token : delta.tokens) {
    chunk->add_token_ids(static_cast<uint32_t>(token.id));
  }
  if (options_.with_logprobs) FillOutputLogprobs(delta.tokens, chunk->mutable_output_logprobs());
  AddInputLogprobs(delta.index, chunk);
}

void VllmStreamBuffer::FillComplete(const engine::SequenceFinish& finish, Complete* complete) {
  const Sequence& sequence = sequences_[finish.index];
  complete->set_index(finish.index);
  complete->set_finish_reason(ReasonName(finish.reason));
  complete->set_prompt_tokens(options_.prompt_tokens);
  complete->set_completion_tokens(sequence.num_tokens);
  for (const engine::TokenWithLogprobs& token : sequence.gathered) {
    complete->add_output_ids(static_cast<uint32_t>(token.id));
  }
  if (options_.with_logprobs && !options_.stream) {
    FillOutputLogprobs(sequence.gathered, complete->mutable_output_logprobs());
  }
  if (finish.matched_stop) complete->set_matched_stop_str(*finish.matched_stop);
  if (finish.matched_token) {
    complete->set_matched_token_id(static_cast<uint32_t>(*finish.matched_token));
  }
  AddInputLogprobs(finish.index, complete);
}

}  // namespace moed::server
