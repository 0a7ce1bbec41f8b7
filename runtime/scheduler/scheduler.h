// Decides which tokens of which sequences the next step computes, and in which KV blocks:
// continuous batching with chunked prefill, and preemption by recompute when blocks run out. It
// works on ids and counts alone, so tests drive it without a model. Owned by the engine, engine
// thread only.
//
// Order is first come, first served, by sequence id. Each step takes one token of every decoding
// sequence, then fills the token budget with prefill, oldest first. A sequence gets the blocks of
// all its known tokens when it is admitted; one more whenever decoding crosses into a new block. If
// none is free then, the newest sequence gives up its blocks and waits to be prefilled again, with
// what it has generated. So every running sequence is older than every waiting one, at most one is
// between two chunks of its prefill (the newest), and the oldest always progresses.
//
// Prefill that is too long to join a step of decodes becomes a pass, of which there is one at most:
// its chunks run by themselves, in slices, and until it ends every step is of decodes alone. The
// pass holds its KV blocks to its end, also those of sequences that are removed meanwhile. If
// decoding needs a block and none is free, the pass is abandoned: its newest sequences give up
// their blocks, and its oldest, if there are several, is back where the pass found it.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "runtime/scheduler/block_allocator.h"

namespace moed::scheduler {

struct SchedulerOptions {
  int max_num_seqs = 1;
  // Tokens of a step. No more than this many sequences run, so that all of them can decode.
  int max_num_batched_tokens = 1;
  int64_t max_model_len = 1;  // tokens of a sequence, prompt and generated
  int num_kv_blocks = 1;
  int kv_block_tokens = 1;
};

using SequenceId = int64_t;
// Sequences of one group have the same prompt. Those after the first share the full KV blocks that
// it has filled, and compute only what follows: there is no operation that copies a block.
using GroupId = int64_t;

// One sequence's part of a step: tokens [context_start, context_start + num_tokens).
struct ScheduledChunk {
  SequenceId sequence = 0;
  int num_tokens = 0;
  int64_t context_start = 0;
  std::span<const int32_t> kv_blocks;  // in order, covering all known tokens
  bool reaches_end = false;            // the chunk ends at the last known token: sample the next
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // The longest sequence that can ever run. Add nothing that may grow beyond it.
  int64_t max_sequence_tokens() const;

  // A new sequence, last in line. Ids grow from call to call.
  void Add(SequenceId id, GroupId group, int64_t prompt_tokens);
  // The chunks of the next step, to be run before any other call. Valid until the next call of any
  // method. Prefill joins decodes if it has at most as many tokens as given; a longer one becomes a
  // pass, see pass(). The step is empty only if nothing but a pass is to be run.
  const std::vector<ScheduledChunk>& Schedule(
      int64_t max_joined_tokens = std::numeric_limits<int64_t>::max());

  // The chunks of the pass in flight, those of removed sequences included; empty if there is none.
  // Schedule begins one, never in a call that found one; Schedule and Remove may abandon it. Valid,
  // with its KV blocks, until it ends.
  const std::vector<ScheduledChunk>& pass() const { return pass_; }
  // All of the pass has run. To be called before Append for its sequences.
  void FinishPass();

  // The last step's chunk reached the end of `id`, and one more token was sampled.
  void Append(SequenceId id);
  // Ends a sequence in whatever state it is and frees its blocks.
  void Remove(SequenceId id);

  bool empty() const { return sequences_.empty(); }
  int num_running() const { return static_cast<int>(running_.size()); }
  int num_waiting() const { return static_cast<int>(waiting_.size()); }
  int64_t num_preemptions() const { return num_preemptions_; }
  const BlockAllocator& blocks() const { return blocks_; }

 private:
  struct Sequence {
    SequenceId id = 0;
    GroupId group = 0;
    int64_t prompt_tokens = 0;
    int64_t num_tokens = 0;    // known: prompt and generated
    int64_t num_computed = 0;  // of these, in the KV cache once the current step has run
    int64_t num_written = 0;   // of these, in the KV cache already
    int num_preemptions = 0;
    bool in_pass = false;
    int64_t pass_start = 0;  // num_computed before the pass
    std::vector<int32_t> kv_blocks;
  };

  Sequence& Find(SequenceId id);
  void ScheduleDecodes();
  void ScheduleRunningPrefill();
  void AdmitWaiting();
  bool Admit(Sequence& sequence);
  bool HasRoomFor(const Sequence& sequence, int64_t num_blocks) const;
  // How many leading tokens of the sequence lie in full blocks of its prompt.
  int64_t ShareableTokens(const Sequence& sequence) const;
  const Sequence* FindRunningSibling(const Sequence& sequence) const;
  bool GrowOrPreempt(Sequence& sequence);
  void PreemptNewest();
  // Makes a pass of the step's chunks from `first` on.
  void BeginPass(size_t first);
  // Undoes it, the newest running sequence being one of its; preempts all of them but the oldest,
  // and that too if it is the only one.
  void AbandonPass();
  void EndPass();
  void AddChunk(Sequence& sequence);
  void ReleaseBlocks(Sequence& sequence);
  int64_t BlocksFor(int64_t tokens) const;

  const SchedulerOptions options_;
  BlockAllocator blocks_;
  absl::flat_hash_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> running_;                  // oldest first
  absl::btree_map<SequenceId, Sequence*> waiting_;  // oldest first
  std::vector<ScheduledChunk> chunks_;              // of the current step
  std::vector<ScheduledChunk> pass_;
  std::vector<std::vector<int32_t>> orphans_;  // KV blocks of the pass's removed sequences
  int budget_ = 0;                             // tokens left in the current step
  int64_t num_preemptions_ = 0;
};

}  // namespace moed::scheduler
