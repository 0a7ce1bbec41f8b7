#include "tests/runtime/scheduler/simulation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

namespace moed::scheduler {
namespace {

// Layers differ only in when a pass writes them.
int NumLayers(const Workload& workload) {
  return workload.max_joined_tokens == std::numeric_limits<int64_t>::max() ? 1 : 3;
}

struct SimulatedSequence {
  GroupId group = 0;
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;  // to be generated
  int64_t num_tokens = 0;
  int64_t num_computed = 0;
  bool running = false;
  bool started = false;
  int preemptions = 0;
  double last_token_seconds = -1;  // none since it was last admitted
};

// A chunk of a pass, as it was when the pass began.
struct PassChunk {
  ScheduledChunk chunk;
  std::vector<int32_t> kv_blocks;
  SimulatedSequence sequence;
};

// What a place in the KV cache holds: the position, and whose token, the group's for its prompt.
using Content = std::tuple<int64_t, int64_t, int64_t>;

class Simulation {
 public:
  Simulation(const Workload& workload, uint64_t seed)
      : workload_(workload),
        random_(seed),
        scheduler_(workload.options),
        num_layers_(NumLayers(workload)),
        kv_(num_layers_, std::vector<Content>(int64_t{workload.options.num_kv_blocks} *
                                              workload.options.kv_block_tokens)) {}

  Outcome Run();

 private:
  int Draw(int low, int high) { return std::uniform_int_distribution(low, high)(random_); }
  void Arrive();
  void CancelSome();
  void Step();
  void CheckBatch(const std::vector<ScheduledChunk>& chunks, int64_t preemptions);
  void Preempt(SimulatedSequence& sequence);
  void CheckChunk(const ScheduledChunk& chunk);
  void Compute(const ScheduledChunk& chunk, int layer, const SimulatedSequence& sequence);
  void CheckBlocksInUse(const std::vector<ScheduledChunk>& chunks) const;
  void CountTokens(const ScheduledChunk& chunk);
  void FollowPass();
  void BeginPass();
  void AdvancePass(int layers);
  void FinishPass();
  bool InPass(SequenceId id) const;
  static Content ContentAt(SequenceId id, const SimulatedSequence& sequence, int64_t position);
  void Sample(SequenceId id);

  const Workload workload_;
  std::mt19937_64 random_;
  Scheduler scheduler_;
  const int num_layers_;
  std::vector<std::vector<Content>> kv_;  // [layers][places]
  std::vector<PassChunk> pass_;           // in flight
  int pass_layers_ = 0;                   // that have run
  // The oldest sequence of a pass that was just abandoned: it may have kept its blocks.
  SequenceId survivor_ = -1;
  std::map<SequenceId, SimulatedSequence> sequences_;  // not yet ended
  SequenceId next_id_ = 0;
  SequenceId newest_started_ = -1;
  int requests_arrived_ = 0;
  double now_seconds_ = 0;
  double next_arrival_seconds_ = 0;
  Outcome outcome_;
};

void Simulation::Arrive() {
  while (requests_arrived_ < workload_.num_requests && next_arrival_seconds_ <= now_seconds_) {
    const int64_t limit = scheduler_.max_sequence_tokens();
    const int64_t prompt = std::min<int64_t>(Draw(1, workload_.max_prompt_tokens), limit - 1);
    const int n = Draw(1, workload_.max_n);
    for (int i = 0; i < n; ++i) {
      const int64_t output =
          std::min<int64_t>(Draw(1, workload_.max_output_tokens), limit - prompt);
      sequences_[next_id_] = {.group = requests_arrived_,
                              .prompt_tokens = prompt,
                              .output_tokens = output,
                              .num_tokens = prompt};
      scheduler_.Add(next_id_++, requests_arrived_, prompt);
    }
    ++requests_arrived_;
    next_arrival_seconds_ +=
        std::exponential_distribution<double>(workload_.arrivals_per_second)(random_);
  }
}

void Simulation::CancelSome() {
  if (sequences_.empty() || std::uniform_real_distribution()(random_) >= workload_.cancels_per_step)
    return;
  const auto victim =
      std::next(sequences_.begin(), Draw(0, static_cast<int>(sequences_.size()) - 1));
  scheduler_.Remove(victim->first);
  sequences_.erase(victim);
  if (!pass_.empty() && scheduler_.pass().empty()) {
    for (const PassChunk& part : pass_) ASSERT_FALSE(sequences_.contains(part.chunk.sequence));
    pass_.clear();
    ++outcome_.passes_abandoned;
  }
}

Content Simulation::ContentAt(SequenceId id, const SimulatedSequence& sequence, int64_t position) {
  const bool in_prompt = position < sequence.prompt_tokens;
  return {position, sequence.group, in_prompt ? -1 : id};
}

bool Simulation::InPass(SequenceId id) const {
  return std::any_of(pass_.begin(), pass_.end(),
                     [id](const PassChunk& part) { return part.chunk.sequence == id; });
}

void Simulation::CheckBatch(const std::vector<ScheduledChunk>& chunks, int64_t preemptions) {
  ASSERT_FALSE(chunks.empty() && pass_.empty()) << "sequences wait and nothing runs";
  std::set<SequenceId> in_batch;
  int64_t tokens = 0;
  for (const ScheduledChunk& chunk : chunks) {
    ASSERT_GT(chunk.num_tokens, 0);
    ASSERT_TRUE(in_batch.insert(chunk.sequence).second) << "two chunks of one sequence";
    ASSERT_FALSE(InPass(chunk.sequence)) << "a sequence runs beside its own pass";
    tokens += chunk.num_tokens;
  }
  ASSERT_LE(tokens, workload_.options.max_num_batched_tokens);
  ASSERT_LE(scheduler_.num_running(), workload_.options.max_num_seqs);
  const SequenceId oldest = sequences_.begin()->first;
  ASSERT_TRUE(in_batch.contains(oldest) || InPass(oldest)) << "the oldest does not progress";
  int64_t left_out = 0;
  for (auto& [id, sequence] : sequences_) {
    if (!sequence.running || in_batch.contains(id) || InPass(id) || id == survivor_) continue;
    ++left_out;
    Preempt(sequence);
  }
  // It goes last, if memory is still too small.
  if (survivor_ >= 0 && !in_batch.contains(survivor_) && left_out < preemptions) {
    ++left_out;
    Preempt(sequences_.at(survivor_));
  }
  ASSERT_EQ(left_out, preemptions) << "a running sequence was left out of a step";
}

void Simulation::Preempt(SimulatedSequence& sequence) {
  sequence.running = false;
  sequence.num_computed = 0;
  sequence.last_token_seconds = -1;
  outcome_.max_preemptions_of_a_sequence =
      std::max(outcome_.max_preemptions_of_a_sequence, ++sequence.preemptions);
}

void Simulation::CheckChunk(const ScheduledChunk& chunk) {
  SimulatedSequence& sequence = sequences_.at(chunk.sequence);
  if (!sequence.started) {
    ASSERT_GT(chunk.sequence, newest_started_) << "started before an older one";
    newest_started_ = chunk.sequence;
    sequence.started = true;
  }
  ASSERT_TRUE(!sequence.running || chunk.context_start == sequence.num_computed);
  sequence.running = true;
  sequence.num_computed = chunk.context_start;  // more than 0 if it shares blocks
  const int64_t end = chunk.context_start + chunk.num_tokens;
  ASSERT_LE(end, sequence.num_tokens);
  ASSERT_EQ(chunk.reaches_end, end == sequence.num_tokens);
  ASSERT_GE(static_cast<int64_t>(chunk.kv_blocks.size()) * workload_.options.kv_block_tokens, end);
}

void Simulation::Compute(const ScheduledChunk& chunk, int layer,
                         const SimulatedSequence& sequence) {
  const int64_t end = chunk.context_start + chunk.num_tokens;
  const int block_tokens = workload_.options.kv_block_tokens;
  for (int64_t position = 0; position < end; ++position) {
    Content& content = kv_[layer][chunk.kv_blocks[position / block_tokens] * block_tokens +
                                  position % block_tokens];
    const Content expected = ContentAt(chunk.sequence, sequence, position);
    if (position >= chunk.context_start) content = expected;
    ASSERT_EQ(content, expected) << "the KV cache holds another token";
  }
}

void Simulation::CountTokens(const ScheduledChunk& chunk) {
  SimulatedSequence& sequence = sequences_.at(chunk.sequence);
  const int64_t end = chunk.context_start + chunk.num_tokens;
  outcome_.prompt_tokens_computed +=
      std::max<int64_t>(0, std::min(end, sequence.prompt_tokens) - chunk.context_start);
  sequence.num_computed = end;
}

void Simulation::CheckBlocksInUse(const std::vector<ScheduledChunk>& chunks) const {
  if (survivor_ >= 0) return;  // its blocks are not shown here
  // Every other running sequence has a chunk, so these are all the blocks that may be held.
  std::set<int32_t> held;
  for (const ScheduledChunk& chunk : chunks) {
    held.insert(chunk.kv_blocks.begin(), chunk.kv_blocks.end());
  }
  for (const PassChunk& part : pass_) held.insert(part.kv_blocks.begin(), part.kv_blocks.end());
  ASSERT_EQ(scheduler_.blocks().num_used(), static_cast<int>(held.size())) << "a block leaked";
}

// After Schedule: has the pass ended, or a new one begun?
void Simulation::FollowPass() {
  survivor_ = -1;
  if (pass_.empty()) {
    if (!scheduler_.pass().empty()) BeginPass();
    return;
  }
  if (!scheduler_.pass().empty()) return;
  std::vector<SequenceId> alive;
  for (const PassChunk& part : pass_) {
    if (sequences_.contains(part.chunk.sequence)) alive.push_back(part.chunk.sequence);
  }
  if (alive.size() > 1) survivor_ = alive.front();
  pass_.clear();
  ++outcome_.passes_abandoned;
}

void Simulation::BeginPass() {
  int64_t tokens = 0;
  pass_layers_ = 0;
  for (const ScheduledChunk& chunk : scheduler_.pass()) {
    ASSERT_NO_FATAL_FAILURE(CheckChunk(chunk));
    pass_.push_back(
        {chunk, {chunk.kv_blocks.begin(), chunk.kv_blocks.end()}, sequences_.at(chunk.sequence)});
    tokens += chunk.num_tokens;
  }
  ASSERT_GT(tokens, workload_.max_joined_tokens);
  ASSERT_LE(tokens, workload_.options.max_num_batched_tokens);
}

void Simulation::AdvancePass(int layers) {
  double seconds = 0;
  for (; layers > 0 && pass_layers_ < num_layers_; --layers, ++pass_layers_) {
    for (const PassChunk& part : pass_) {
      ASSERT_TRUE(
          std::equal(part.kv_blocks.begin(), part.kv_blocks.end(), part.chunk.kv_blocks.begin()));
      ASSERT_NO_FATAL_FAILURE(Compute(part.chunk, pass_layers_, part.sequence));
      seconds += part.chunk.num_tokens * workload_.seconds_per_token / num_layers_;
    }
  }
  now_seconds_ += seconds;
  if (pass_layers_ == num_layers_) FinishPass();
}

void Simulation::FinishPass() {
  scheduler_.FinishPass();
  ++outcome_.passes_finished;
  for (const PassChunk& part : std::exchange(pass_, {})) {
    if (!sequences_.contains(part.chunk.sequence)) continue;
    CountTokens(part.chunk);
    if (part.chunk.reaches_end) Sample(part.chunk.sequence);
  }
}

void Simulation::Sample(SequenceId id) {
  SimulatedSequence& sequence = sequences_.at(id);
  if (sequence.last_token_seconds >= 0) {
    outcome_.max_decode_gap_seconds =
        std::max(outcome_.max_decode_gap_seconds, now_seconds_ - sequence.last_token_seconds);
  }
  sequence.last_token_seconds = now_seconds_;
  ++sequence.num_tokens;
  if (sequence.num_tokens == sequence.prompt_tokens + sequence.output_tokens) {
    scheduler_.Remove(id);
    sequences_.erase(id);
  } else {
    scheduler_.Append(id);
  }
}

void Simulation::Step() {
  const double start_seconds = now_seconds_;
  const int64_t preemptions = scheduler_.num_preemptions();
  const std::vector<ScheduledChunk>& chunks = scheduler_.Schedule(workload_.max_joined_tokens);
  ASSERT_NO_FATAL_FAILURE(FollowPass());
  ASSERT_NO_FATAL_FAILURE(CheckBatch(chunks, scheduler_.num_preemptions() - preemptions));
  // Contexts are checked against the cache before this step's writes of younger chunks.
  int64_t tokens = 0;
  std::vector<SequenceId> sampled;
  for (const ScheduledChunk& chunk : chunks) {
    ASSERT_NO_FATAL_FAILURE(CheckChunk(chunk));
    for (int layer = 0; layer < num_layers_; ++layer) {
      ASSERT_NO_FATAL_FAILURE(Compute(chunk, layer, sequences_.at(chunk.sequence)));
    }
    CountTokens(chunk);
    tokens += chunk.num_tokens;
    if (chunk.reaches_end) sampled.push_back(chunk.sequence);
  }
  ASSERT_NO_FATAL_FAILURE(CheckBlocksInUse(chunks));
  now_seconds_ +=
      workload_.seconds_per_step + static_cast<double>(tokens) * workload_.seconds_per_token;
  ++outcome_.steps;
  for (SequenceId id : sampled) Sample(id);
  if (!pass_.empty()) {
    ASSERT_NO_FATAL_FAILURE(AdvancePass(Draw(1, workload_.max_layers_per_slice)));
  }
  outcome_.max_step_seconds = std::max(outcome_.max_step_seconds, now_seconds_ - start_seconds);
}

Outcome Simulation::Run() {
  while (requests_arrived_ < workload_.num_requests || !sequences_.empty()) {
    Arrive();
    CancelSome();
    EXPECT_EQ(scheduler_.empty(), sequences_.empty());
    if (sequences_.empty()) {
      now_seconds_ = std::max(now_seconds_, next_arrival_seconds_);
      continue;
    }
    Step();
    if (testing::Test::HasFatalFailure()) return outcome_;
  }
  EXPECT_EQ(scheduler_.blocks().num_used(), 0);
  EXPECT_EQ(scheduler_.num_running() + scheduler_.num_waiting(), 0);
  outcome_.preemptions = scheduler_.num_preemptions();
  return outcome_;
}

}  // namespace

Outcome Simulate(const Workload& workload, uint64_t seed) {
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  return Simulation(workload, seed).Run();
}

}  // namespace moed::scheduler
