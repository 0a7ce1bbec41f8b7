#include "runtime/scheduler/scheduler.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/base/internal/raw_logging.h"

namespace moed::scheduler {
namespace {

SchedulerOptions WithRoomToDecode(SchedulerOptions options) {
  options.max_num_seqs = std::min(options.max_num_seqs, options.max_num_batched_tokens);
  return options;
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(WithRoomToDecode(options)), blocks_(options.num_kv_blocks) {
  ABSL_RAW_CHECK(options_.max_num_seqs > 0, "max_num_seqs and max_num_batched_tokens must be > 0");
  ABSL_RAW_CHECK(options_.num_kv_blocks > 0 && options_.kv_block_tokens > 0,
                 "num_kv_blocks and kv_block_tokens must be > 0");
  running_.reserve(options_.max_num_seqs);
  chunks_.reserve(options_.max_num_seqs);
}

int64_t Scheduler::max_sequence_tokens() const {
  // The last token of a sequence is never computed, but a block table of its length is simpler.
  return std::min(options_.max_model_len,
                  int64_t{options_.num_kv_blocks} * options_.kv_block_tokens);
}

int64_t Scheduler::BlocksFor(int64_t tokens) const {
  return (tokens + options_.kv_block_tokens - 1) / options_.kv_block_tokens;
}

void Scheduler::Add(SequenceId id, GroupId group, int64_t prompt_tokens) {
  ABSL_RAW_CHECK(prompt_tokens > 0 && prompt_tokens <= max_sequence_tokens(),
                 "a sequence is added that can never run");
  auto sequence = std::make_unique<Sequence>();
  sequence->id = id;
  sequence->group = group;
  sequence->prompt_tokens = prompt_tokens;
  sequence->num_tokens = prompt_tokens;
  waiting_.emplace(id, sequence.get());
  sequences_.emplace(id, std::move(sequence));
}

const std::vector<ScheduledChunk>& Scheduler::Schedule(int64_t max_joined_tokens) {
  chunks_.clear();
  budget_ = options_.max_num_batched_tokens;
  for (Sequence* sequence : running_) {
    if (!sequence->in_pass) sequence->num_written = sequence->num_computed;
  }
  const bool beside_pass = !pass_.empty();
  const int64_t preemptions_before = num_preemptions_;
  ScheduleDecodes();
  if (beside_pass) return chunks_;
  const size_t num_decodes = chunks_.size();
  const int budget_of_prefill = budget_;
  ScheduleRunningPrefill();
  // What a preemption has freed is for those that are still running.
  if (num_preemptions_ == preemptions_before) AdmitWaiting();
  if (num_decodes > 0 && budget_of_prefill - budget_ > max_joined_tokens) BeginPass(num_decodes);
  return chunks_;
}

void Scheduler::ScheduleDecodes() {
  // Preemption shortens running_ from its end, never before the current sequence.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.in_pass || sequence.num_tokens - sequence.num_computed != 1) continue;
    if (GrowOrPreempt(sequence)) AddChunk(sequence);
  }
}

void Scheduler::ScheduleRunningPrefill() {
  if (running_.empty()) return;
  Sequence& newest = *running_.back();
  if (newest.num_computed < newest.num_tokens) AddChunk(newest);
}

void Scheduler::AdmitWaiting() {
  while (budget_ > 0 && !waiting_.empty() && num_running() < options_.max_num_seqs) {
    const auto next = waiting_.begin();
    Sequence& sequence = *next->second;
    if (!Admit(sequence)) return;
    waiting_.erase(next);
    running_.push_back(&sequence);
    AddChunk(sequence);
  }
}

bool Scheduler::Admit(Sequence& sequence) {
  const int64_t shareable = ShareableTokens(sequence);
  const Sequence* sibling = shareable > 0 ? FindRunningSibling(sequence) : nullptr;
  // A sibling is still filling the prompt's blocks: waiting for it is cheaper than doing it again.
  if (sibling != nullptr && sibling->num_written < shareable) return false;
  const int64_t shared = sibling == nullptr ? 0 : shareable;
  const int64_t shared_blocks = shared / options_.kv_block_tokens;
  const int64_t new_blocks = BlocksFor(sequence.num_tokens) - shared_blocks;
  if (!HasRoomFor(sequence, new_blocks)) return false;
  for (int64_t i = 0; i < shared_blocks; ++i) {
    blocks_.Share(sibling->kv_blocks[i]);
    sequence.kv_blocks.push_back(sibling->kv_blocks[i]);
  }
  for (int64_t i = 0; i < new_blocks; ++i) sequence.kv_blocks.push_back(*blocks_.Allocate());
  sequence.num_computed = shared;
  sequence.num_written = shared;
  return true;
}

bool Scheduler::HasRoomFor(const Sequence& sequence, int64_t num_blocks) const {
  if (num_blocks > blocks_.num_free()) return false;
  if (running_.empty()) return true;
  // Every running sequence may soon need a block more. One that was preempted before asks for twice
  // the spare room each time, so that it is not thrown out again and again.
  const int doublings = std::min(sequence.num_preemptions, 16);
  const int64_t spare = int64_t{num_running()} << doublings;
  return num_blocks + spare <= blocks_.num_free();
}

int64_t Scheduler::ShareableTokens(const Sequence& sequence) const {
  // The last known token is always computed: its logits are what the sequence waits for.
  const int64_t tokens = std::min(sequence.prompt_tokens, sequence.num_tokens - 1);
  return tokens / options_.kv_block_tokens * options_.kv_block_tokens;
}

const Scheduler::Sequence* Scheduler::FindRunningSibling(const Sequence& sequence) const {
  const auto sibling = std::find_if(running_.begin(), running_.end(), [&](const Sequence* other) {
    return other->group == sequence.group;
  });
  return sibling == running_.end() ? nullptr : *sibling;
}

bool Scheduler::GrowOrPreempt(Sequence& sequence) {
  while (static_cast<int64_t>(sequence.kv_blocks.size()) < BlocksFor(sequence.num_tokens)) {
    if (const auto block = blocks_.Allocate()) {
      sequence.kv_blocks.push_back(*block);
      continue;
    }
    const bool is_newest = running_.back() == &sequence;
    PreemptNewest();
    if (is_newest) return false;
  }
  return true;
}

void Scheduler::BeginPass(size_t first) {
  pass_.assign(chunks_.begin() + static_cast<ptrdiff_t>(first), chunks_.end());
  chunks_.resize(first);
  for (const ScheduledChunk& chunk : pass_) {
    Sequence& sequence = Find(chunk.sequence);
    sequence.in_pass = true;
    sequence.pass_start = chunk.context_start;
  }
}

void Scheduler::AbandonPass() {
  const auto first = std::find_if(running_.begin(), running_.end(),
                                  [](const Sequence* sequence) { return sequence->in_pass; });
  Sequence& oldest = **first;
  const bool alone = &oldest == running_.back();
  for (Sequence* sequence : running_) sequence->in_pass = false;
  oldest.num_computed = oldest.pass_start;
  EndPass();
  while (running_.back() != &oldest) PreemptNewest();
  if (alone) PreemptNewest();
}

void Scheduler::FinishPass() {
  for (Sequence* sequence : running_) sequence->in_pass = false;
  EndPass();
}

void Scheduler::EndPass() {
  for (const std::vector<int32_t>& kv_blocks : orphans_) {
    for (auto block = kv_blocks.rbegin(); block != kv_blocks.rend(); ++block) {
      blocks_.Release(*block);
    }
  }
  orphans_.clear();
  pass_.clear();
}

void Scheduler::PreemptNewest() {
  if (running_.back()->in_pass) return AbandonPass();
  Sequence& sequence = *running_.back();
  running_.pop_back();
  ReleaseBlocks(sequence);
  sequence.num_computed = 0;
  sequence.num_written = 0;
  ++sequence.num_preemptions;
  ++num_preemptions_;
  waiting_.emplace(sequence.id, &sequence);
}

void Scheduler::AddChunk(Sequence& sequence) {
  const int64_t missing = sequence.num_tokens - sequence.num_computed;
  const int count = static_cast<int>(std::min<int64_t>(missing, budget_));
  chunks_.push_back({sequence.id, count, sequence.num_computed, sequence.kv_blocks,
                     /*reaches_end=*/count == missing});
  sequence.num_computed += count;
  budget_ -= count;
}

Scheduler::Sequence& Scheduler::Find(SequenceId id) {
  const auto found = sequences_.find(id);
  ABSL_RAW_CHECK(found != sequences_.end(), "a sequence is named that is not here");
  return *found->second;
}

void Scheduler::Append(SequenceId id) {
  Sequence& sequence = Find(id);
  ABSL_RAW_CHECK(sequence.num_computed == sequence.num_tokens,
                 "a token is appended to a sequence that was not sampled");
  ++sequence.num_tokens;
}

void Scheduler::Remove(SequenceId id) {
  Sequence& sequence = Find(id);
  if (sequence.in_pass) {
    orphans_.push_back(std::move(sequence.kv_blocks));
    sequence.kv_blocks.clear();
  }
  ReleaseBlocks(sequence);
  if (waiting_.erase(id) == 0)
    running_.erase(std::find(running_.begin(), running_.end(), &sequence));
  sequences_.erase(id);
  // The sequences of a pass are the newest.
  if (!pass_.empty() && (running_.empty() || !running_.back()->in_pass)) EndPass();
}

void Scheduler::ReleaseBlocks(Sequence& sequence) {
  // Last first, so that the allocator's stack gives them out again in their old order.
  for (auto block = sequence.kv_blocks.rbegin(); block != sequence.kv_blocks.rend(); ++block) {
    blocks_.Release(*block);
  }
  sequence.kv_blocks.clear();
}

}  // namespace moed::scheduler
