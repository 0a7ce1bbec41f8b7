#include "tests/runtime/engine/scripted_runner.h"

#include <algorithm>
#include <thread>
#include <utility>

namespace moed::engine {

ScriptedRunner::ScriptedRunner(const EngineOptions& options, NextToken next_token, int pass_layers)
    : block_tokens_(options.kv_block_tokens),
      max_num_seqs_(options.max_num_seqs),
      pass_layers_(pass_layers),
      next_token_(std::move(next_token)),
      kv_(std::max(1, pass_layers),
          std::vector<int32_t>(int64_t{options.num_kv_blocks} * options.kv_block_tokens, -1)) {}

ScriptedRunner::NextToken ScriptedRunner::HashOfContext(int vocab_size) {
  return [vocab_size](const std::vector<int32_t>& context) {
    uint64_t hash = 14695981039346656037u;  // FNV-1a
    for (int32_t token : context) hash = (hash ^ static_cast<uint64_t>(token)) * 1099511628211u;
    return static_cast<int32_t>(10 + (hash >> 17) % static_cast<uint64_t>(vocab_size - 10));
  };
}

absl::Status ScriptedRunner::Run(const model::StepInput& input, model::StepResult* result) {
  PassGate(steps_gate_);
  if (fails_) return absl::InternalError("the device is gone");
  if (pass_ != nullptr) ++steps_beside_passes_;
  max_chunks_ = std::max<int>(max_chunks_, static_cast<int>(input.chunks.size()));
  SpendPrefillTime(input, 1);
  // Chunk after chunk, so that the context of each is as it was when it ran.
  result->chunks.assign(input.chunks.size(), {});
  const int32_t* tokens = input.token_ids.data();
  for (size_t i = 0; i < input.chunks.size(); ++i) {
    const model::SequenceChunk& chunk = input.chunks[i];
    for (size_t layer = 0; layer < kv_.size(); ++layer) {
      Write(static_cast<int>(layer), chunk, tokens);
    }
    FinishChunk(chunk, tokens, &result->chunks[i]);
    tokens += chunk.num_tokens;
  }
  ++steps_;
  return absl::OkStatus();
}

absl::Status ScriptedRunner::BeginPass(const model::StepInput& input) {
  if (pass_ != nullptr) return absl::InternalError("two passes at once");
  pass_ = &input;
  pass_layer_ = 0;
  ++passes_begun_;
  return absl::OkStatus();
}

absl::Status ScriptedRunner::AdvancePass(int layers) {
  PassGate(slices_gate_);
  if (slice_fails_) return absl::InternalError("the device is gone");
  for (; layers > 0; --layers, ++pass_layer_) {
    SpendPrefillTime(*pass_, pass_layers_);
    const int32_t* tokens = pass_->token_ids.data();
    for (const model::SequenceChunk& chunk : pass_->chunks) {
      Write(pass_layer_, chunk, tokens);
      tokens += chunk.num_tokens;
    }
  }
  return absl::OkStatus();
}

absl::Status ScriptedRunner::FinishPass(model::StepResult* result) {
  if (pass_layer_ != pass_layers_) return absl::InternalError("layers of the pass are missing");
  result->chunks.assign(pass_->chunks.size(), {});
  const int32_t* tokens = pass_->token_ids.data();
  for (size_t i = 0; i < pass_->chunks.size(); ++i) {
    FinishChunk(pass_->chunks[i], tokens, &result->chunks[i]);
    tokens += pass_->chunks[i].num_tokens;
  }
  pass_ = nullptr;
  ++passes_finished_;
  return absl::OkStatus();
}

void ScriptedRunner::AbandonPass(model::StepResult* result) {
  result->chunks.assign(pass_->chunks.size(), {});
  for (model::ChunkResult& chunk : result->chunks) chunk.experts.hits = pass_layer_;
  total_hits_ = total_hits_ + pass_layer_ * static_cast<double>(pass_->chunks.size());
  pass_ = nullptr;
  ++passes_abandoned_;
}

void ScriptedRunner::SpendPrefillTime(const model::StepInput& input, int parts) const {
  const std::chrono::microseconds a_token = prefill_time_;
  if (a_token.count() == 0) return;
  int64_t tokens = 0;
  for (const model::SequenceChunk& chunk : input.chunks) tokens += chunk.num_tokens - 1;
  if (tokens > 0) std::this_thread::sleep_for(a_token * tokens / parts);
}

int32_t& ScriptedRunner::Place(int layer, const model::SequenceChunk& chunk, int position) {
  return kv_[layer][int64_t{chunk.kv_blocks[position / block_tokens_]} * block_tokens_ +
                    position % block_tokens_];
}

void ScriptedRunner::Write(int layer, const model::SequenceChunk& chunk, const int32_t* tokens) {
  for (int i = 0; i < chunk.num_tokens; ++i)
    Place(layer, chunk, chunk.context_start + i) = tokens[i];
}

void ScriptedRunner::FinishChunk(const model::SequenceChunk& chunk, const int32_t* tokens,
                                 model::ChunkResult* result) {
  const int end = chunk.context_start + chunk.num_tokens;
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
  // A layer that holds something else makes another context.
  std::vector<int32_t> context;
  for (int position = 0; position < end; ++position) {
    context.push_back(Place(0, chunk, position));
    for (size_t layer = 1; layer < kv_.size(); ++layer) {
      const int32_t token = Place(static_cast<int>(layer), chunk, position);
      if (token != context.back()) context.back() = -1 - token;
    }
  }
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

void ScriptedRunner::PassGate(Gate& gate) {
  std::unique_lock lock(mutex_);
  gate.waiting = gate.allowed == 0;
  if (gate.waiting) changed_.notify_all();
  changed_.wait(lock, [&] { return gate.allowed > 0; });
  gate.waiting = false;
  --gate.allowed;
}

void ScriptedRunner::Allow(Gate& gate, int64_t count) {
  std::lock_guard lock(mutex_);
  gate.allowed = count;
  if (count > 0) gate.waiting = false;
  changed_.notify_all();
}

void ScriptedRunner::AwaitHeld(Gate& gate) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return gate.waiting; });
}

void ScriptedRunner::AllowSteps(int64_t count) { Allow(steps_gate_, count); }
void ScriptedRunner::AwaitHeld() { AwaitHeld(steps_gate_); }
void ScriptedRunner::AllowSlices(int64_t count) { Allow(slices_gate_, count); }
void ScriptedRunner::AwaitPassHeld() { AwaitHeld(slices_gate_); }

}  // namespace moed::engine
