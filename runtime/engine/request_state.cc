#include "runtime/engine/request_state.h"

#include <algorithm>
#include <utility>

namespace moed::engine {

uint64_t SequenceSeed(uint64_t request_seed, int index) {
  if (index == 0) return request_seed;
  // SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
  uint64_t mixed = request_seed + static_cast<uint64_t>(index) * 0x9e3779b97f4a7c15;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
  return mixed ^ (mixed >> 31);
}

RequestState::RequestState(Request request, std::span<const int32_t> eos_token_ids,
                           int64_t max_sequence_tokens, std::unique_ptr<OutputStream> output_stream)
    : id(std::move(request.id)),
      deadline(request.deadline),
      submitted(absl::Now()),
      prompt_logprobs(request.prompt_logprobs),
      num_unfinished(request.n),
      stream(std::move(output_stream)),
      prompt_(std::move(request.prompt)),
      end_tokens_(request.stop_token_ids.begin(), request.stop_token_ids.end()),
      min_tokens_(request.min_tokens) {
  const int64_t room = max_sequence_tokens - static_cast<int64_t>(prompt_.size());
  max_tokens_ = request.max_tokens == 0 ? room : std::min(request.max_tokens, room);
  if (!request.ignore_eos) end_tokens_.insert(eos_token_ids.begin(), eos_token_ids.end());
  if (prompt_logprobs >= 0) collected_prompt_logprobs = std::make_unique<PromptLogprobs>();
  usage.prompt_tokens = static_cast<int64_t>(prompt_.size());
  sequences.reserve(request.n);
  for (int index = 0; index < request.n; ++index) {
    model::SamplingParams params = request.sampling;
    params.seed = SequenceSeed(params.seed, index);
    sequences.push_back(
        {.index = index, .output = {}, .sampler = {std::move(params), std::span(prompt_)}});
    if (min_tokens_ > 0) sequences.back().sampler.Forbid({end_tokens_.begin(), end_tokens_.end()});
  }
}

void RequestState::CopyTokens(const SequenceState& sequence, int64_t start, int count,
                              std::vector<int32_t>* out) const {
  const int64_t prompt_tokens = static_cast<int64_t>(prompt_.size());
  const int64_t end = start + count;
  const int64_t split = std::clamp(prompt_tokens, start, end);
  out->insert(out->end(), prompt_.begin() + std::min(start, prompt_tokens),
              prompt_.begin() + std::min(split, prompt_tokens));
  if (split == end) return;
  out->insert(out->end(), sequence.output.begin() + (split - prompt_tokens),
              sequence.output.begin() + (end - prompt_tokens));
}

std::optional<FinishReason> RequestState::Accept(SequenceState& sequence, int32_t token) {
  sequence.output.push_back(token);
  const int64_t num_tokens = static_cast<int64_t>(sequence.output.size());
  if (num_tokens == min_tokens_) sequence.sampler.Forbid({});
  if (num_tokens > min_tokens_ && IsEndToken(token)) return FinishReason::kStop;
  if (num_tokens >= max_tokens_) return FinishReason::kLength;
  return std::nullopt;
}

}  // namespace moed::engine
