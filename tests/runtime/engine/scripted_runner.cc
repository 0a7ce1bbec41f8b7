#include "tests/runtime/engine/scripted_runner.h"

#include <algorithm>
#include <utility>

namespace moed::engine {

ScriptedRunner::ScriptedRunner(const EngineOptions& options, NextToken next_token)
    : block_tokens_(options.kv_block_tokens),
      next_token_(std::move(next_token)),
      kv_(int64_t{options.num_kv_blocks} * options.kv_block_tokens, -1) {}

ScriptedRunner::NextToken ScriptedRunner::HashOfContext(int vocab_size) {
  return [vocab_size](const std::vector<int32_t>& context) {
    uint64_t hash = 14695981039346656037u;  // FNV-1a
    for (int32_t token : context) hash = (hash ^ static_cast<uint64_t>(token)) * 1099511628211u;
    return static_cast<int32_t>(10 + (hash >> 17) % static_cast<uint64_t>(vocab_size - 10));
  };
}

absl::Status ScriptedRunner::Run(const model::StepInput& input, model::StepResult* result) {
  PassGate();
  if (fails_) return absl::InternalError("the device is gone");
  max_chunks_ = std::max<int>(max_chunks_, static_cast<int>(input.chunks.size()));
  result->chunks.assign(input.chunks.size(), {});
  const int32_t* tokens = input.token_ids.data();
  for (size_t i = 0; i < input.chunks.size(); ++i) {
    RunChunk(input.chunks[i], tokens, &result->chunks[i]);
    tokens += input.chunks[i].num_tokens;
  }
  ++steps_;
  return absl::OkStatus();
}

void ScriptedRunner::RunChunk(const model::SequenceChunk& chunk, const int32_t* tokens,
                              model::ChunkResult* result) {
  const auto place = [&](int position) -> int32_t& {
    return kv_[int64_t{chunk.kv_blocks[position / block_tokens_]} * block_tokens_ +
               position % block_tokens_];
  };
  const int end = chunk.context_start + chunk.num_tokens;
  for (int position = chunk.context_start; position < end; ++position) {
    place(position) = tokens[position - chunk.context_start];
  }
  result->experts = {.hits = static_cast<double>(chunk.num_tokens),
                     .misses = 0.5,
                     .bytes_paged = 100,
                     .stall_seconds = 0.25};
  total_hits_ = total_hits_ + chunk.num_tokens;
  if (chunk.prompt_logprobs >= 0) {
    for (int i = 1; i <= chunk.num_tokens; ++i) {
      const int32_t next = i < chunk.num_tokens ? tokens[i] : chunk.next_token;
      if (next >= 0) result->prompt_logprobs.push_back({{next, -1.0f}});
    }
  }
  if (chunk.sampler == nullptr) return;
  std::vector<int32_t> context;
  for (int position = 0; position < end; ++position) context.push_back(place(position));
  int32_t token = next_token_(context);
  const auto& forbidden = chunk.sampler->forbidden();
  while (std::find(forbidden.begin(), forbidden.end(), token) != forbidden.end()) ++token;
  if (token < 0) {
    result->invalid = true;
    return;
  }
  result->token = token;
  result->logprob = -0.5f;
  for (int i = 0; i < chunk.sampler->params().logprobs; ++i) {
    result->top_logprobs.push_back({i, -1.0f - static_cast<float>(i)});
  }
  chunk.sampler->Accept(token);
}

void ScriptedRunner::PassGate() {
  std::unique_lock lock(mutex_);
  waiting_ = allowed_steps_ == 0;
  if (waiting_) changed_.notify_all();
  changed_.wait(lock, [&] { return allowed_steps_ > 0; });
  waiting_ = false;
  --allowed_steps_;
}

void ScriptedRunner::AllowSteps(int64_t count) {
  std::lock_guard lock(mutex_);
  allowed_steps_ = count;
  if (count > 0) waiting_ = false;
  changed_.notify_all();
}

void ScriptedRunner::AwaitHeld() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return waiting_; });
}

}  // namespace moed::engine
