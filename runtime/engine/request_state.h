// A request inside the engine: its sequences, what decides their end, and the bill. Made by the
// submitting thread, then owned by the engine thread until the request ends.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/time/time.h"
#include "runtime/engine/output_stream.h"
#include "runtime/engine/request.h"
#include "runtime/model/sampling.h"
#include "runtime/scheduler/scheduler.h"

namespace moed::engine {

struct SequenceState {
  scheduler::SequenceId id = 0;  // given by the engine thread
  int index = 0;                 // which of the request's n
  bool ended = false;
  std::vector<int32_t> output;
  model::SamplerState sampler;
};

class RequestState {
 public:
  // The request is valid. `max_sequence_tokens` cuts max_tokens to what can ever run.
  RequestState(Request request, std::span<const int32_t> eos_token_ids, int64_t max_sequence_tokens,
               std::unique_ptr<OutputStream> output_stream);

  const std::vector<int32_t>& prompt() const { return prompt_; }
  // Appends tokens [start, start + count) of a sequence, prompt and output, to `out`.
  void CopyTokens(const SequenceState& sequence, int64_t start, int count,
                  std::vector<int32_t>* out) const;
  // Adds a sampled token to a sequence. Set: it was the last one, and why.
  std::optional<FinishReason> Accept(SequenceState& sequence, int32_t token);
  bool IsEndToken(int32_t token) const { return end_tokens_.contains(token); }

  std::string id;
  absl::Time deadline;
  absl::Time submitted;
  bool started = false;  // a first token was scheduled
  int prompt_logprobs = -1;
  // Collected over the prompt's chunks; null if not asked for, or sent already.
  std::unique_ptr<PromptLogprobs> collected_prompt_logprobs;
  std::vector<SequenceState> sequences;  // never resized: the scheduler's chunks point to samplers
  int num_unfinished = 0;
  Usage usage;
  std::unique_ptr<OutputStream> stream;

 private:
  std::vector<int32_t> prompt_;
  absl::flat_hash_set<int32_t> end_tokens_;
  int64_t max_tokens_ = 0;
  int64_t min_tokens_ = 0;
};

// The seed of sequence `index` of a request: its own for the first, unrelated ones for the others.
uint64_t SequenceSeed(uint64_t request_seed, int index);

}  // namespace moed::engine
