#include "runtime/model/step_sampler.h"

#include <algorithm>
#include <utility>

#include "runtime/model/row_sampling.h"

namespace moed::model {
namespace {

// The `count` most probable tokens.
void AppendTop(const backend::SampledRow& sampled, int count, std::vector<TokenLogprob>* logprobs) {
  for (int i = 0; i < count; ++i) {
    logprobs->push_back({sampled.top_tokens[i], sampled.top_logprobs[i]});
  }
}

}  // namespace

StepSampler::StepSampler(int vocab_size, std::unique_ptr<backend::RowSampler> on_device,
                         backend::Backend& backend)
    : vocab_size_(vocab_size),
      on_device_(std::move(on_device)),
      backend_(backend),
      sampler_(vocab_size),
      host_row_(on_device_ == nullptr ? 0 : vocab_size) {}

absl::Status StepSampler::Sample(const StepInput& input, LogitsOf source, Transformer& transformer,
                                 StepResult* result) {
  Issue(input, source, transformer);
  return Finish(input, source, transformer, result);
}

void StepSampler::Issue(const StepInput& input, LogitsOf source, Transformer& transformer) {
  ListLogits(input);
  if (on_device_ != nullptr && !rows_.empty()) IssueOnDevice(0, input, source, transformer);
}

absl::Status StepSampler::Finish(const StepInput& input, LogitsOf source, Transformer& transformer,
                                 StepResult* result) {
  result->chunks.assign(input.chunks.size(), ChunkResult{});
  if (rows_.empty()) return backend_.Synchronize();
  if (on_device_ == nullptr) {
    return transformer.ForEachLogits(source, rows_,
                                     [&](size_t index, std::span<const float> logits) {
                                       UseOnHost(input, uses_[index], logits, result);
                                     });
  }
  for (;;) {
    if (absl::Status status = on_device_->Wait(); !status.ok()) return status;
    absl::Status status = TakeAnswers(input, IssuedUses(), issued_, result);
    const size_t next = issued_begin_ + issued_.rows.size();
    if (!status.ok() || next == rows_.size()) return status;
    IssueOnDevice(next, input, source, transformer);
  }
}

void StepSampler::ListLogits(const StepInput& input) {
  rows_.clear();
  uses_.clear();
  int32_t first_row = 0;
  for (size_t i = 0; i < input.chunks.size(); ++i) {
    const SequenceChunk& chunk = input.chunks[i];
    const int32_t end_row = first_row + chunk.num_tokens;
    for (int32_t row = first_row; chunk.prompt_logprobs >= 0 && row < end_row; ++row) {
      const int32_t next = row + 1 < end_row ? input.token_ids[row + 1] : chunk.next_token;
      if (next < 0) continue;
      rows_.push_back(row);
      uses_.push_back({.chunk = i, .prompt_token = next});
    }
    if (chunk.sampler != nullptr) {
      rows_.push_back(end_row - 1);
      uses_.push_back({.chunk = i});
    }
    first_row = end_row;
  }
}

void StepSampler::UseOnHost(const StepInput& input, const LogitsUse& use,
                            std::span<const float> logits, StepResult* result) {
  const SequenceChunk& chunk = input.chunks[use.chunk];
  ChunkResult& of_chunk = result->chunks[use.chunk];
  if (use.prompt_token >= 0) {
    std::vector<TokenLogprob> logprobs =
        sampler_.Logprobs(logits, use.prompt_token, chunk.prompt_logprobs);
    if (logprobs.empty()) of_chunk.invalid = true;
    of_chunk.prompt_logprobs.push_back(std::move(logprobs));
    return;
  }
  sampler_.Sample(logits, *chunk.sampler, &of_chunk);
  if (of_chunk.token >= 0) chunk.sampler->Accept(of_chunk.token);
}

void StepSampler::IssueOnDevice(size_t begin, const StepInput& input, LogitsOf source,
                                Transformer& transformer) {
  const size_t wanted = std::min(static_cast<size_t>(on_device_->max_rows()), rows_.size() - begin);
  issued_ = transformer.IssueLogits(source, std::span(rows_).subspan(begin, wanted));
  issued_begin_ = begin;
  AskDevice(input, IssuedUses(), issued_);
}

std::span<const StepSampler::LogitsUse> StepSampler::IssuedUses() const {
  return std::span(uses_).subspan(issued_begin_, issued_.rows.size());
}

void StepSampler::AskDevice(const StepInput& input, std::span<const LogitsUse> uses,
                            const DeviceLogits& logits) {
  asked_.clear();
  adjustments_.clear();
  is_asked_.assign(uses.size(), true);
  for (size_t i = 0; i < uses.size(); ++i) {
    const SequenceChunk& chunk = input.chunks[uses[i].chunk];
    const int32_t row = logits.rows[i];
    if (uses[i].prompt_token >= 0) {
      asked_.push_back(
          {.row = row, .token = uses[i].prompt_token, .logprobs = chunk.prompt_logprobs});
      continue;
    }
    const auto taken = static_cast<int64_t>(adjustments_.size());
    is_asked_[i] = taken + CountAdjustments(*chunk.sampler) <= on_device_->max_adjustments();
    if (is_asked_[i]) asked_.push_back(MakeRowSampling(*chunk.sampler, row, &adjustments_));
  }
  on_device_->Sample(logits.logits, asked_, adjustments_);
}

absl::Status StepSampler::TakeAnswers(const StepInput& input, std::span<const LogitsUse> uses,
                                      const DeviceLogits& logits, StepResult* result) {
  size_t answer = 0;
  for (size_t i = 0; i < uses.size(); ++i) {
    if (is_asked_[i]) {
      UseAnswer(input.chunks[uses[i].chunk], uses[i], on_device_->results()[answer++],
                &result->chunks[uses[i].chunk]);
      continue;
    }
    const std::span<std::byte> row = std::as_writable_bytes(std::span(host_row_));
    const std::byte* source =
        logits.logits.As<std::byte>() + static_cast<size_t>(logits.rows[i]) * row.size();
    if (absl::Status status = backend_.CopyToHost(source, row); !status.ok()) return status;
    UseOnHost(input, uses[i], host_row_, result);
  }
  return absl::OkStatus();
}

void StepSampler::UseAnswer(const SequenceChunk& chunk, const LogitsUse& use,
                            const backend::SampledRow& sampled, ChunkResult* result) {
  if (sampled.invalid != 0) result->invalid = true;
  if (use.prompt_token >= 0) {
    std::vector<TokenLogprob>& logprobs = result->prompt_logprobs.emplace_back();
    if (sampled.invalid != 0) return;
    logprobs.push_back({use.prompt_token, sampled.logprob});
    AppendTop(sampled, std::min(chunk.prompt_logprobs, vocab_size_), &logprobs);
    return;
  }
  if (sampled.invalid != 0) return;
  result->token = sampled.token;
  const int logprobs = chunk.sampler->params().logprobs;
  if (logprobs >= 0) {
    result->logprob = sampled.logprob;
    AppendTop(sampled, std::min(logprobs, vocab_size_), &result->top_logprobs);
  }
  chunk.sampler->Accept(sampled.token);
}

}  // namespace moed::model
