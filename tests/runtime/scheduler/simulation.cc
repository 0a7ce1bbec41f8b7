#include "tests/runtime/scheduler/simulation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <vector>

namespace moed::scheduler {
namespace {

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

// What a place in the KV cache holds: the position, and whose token, the group's for its prompt.
using Content = std::tuple<int64_t, int64_t, int64_t>;

class Simulation {
 public:
  Simulation(const Workload& workload, uint64_t seed)
      : workload_(workload),
        random_(seed),
        scheduler_(workload.options),
        kv_(int64_t{workload.options.num_kv_blocks} * workload.options.kv_block_tokens) {}

  Outcome Run();

 private:
  int Draw(int low, int high) { return std::uniform_int_distribution(low, high)(random_); }
  void Arrive();
  void CancelSome();
  void Step();
  void CheckBatch(const std::vector<ScheduledChunk>& chunks, int64_t preemptions);
  void Compute(const ScheduledChunk& chunk);
  void CheckBlocksInUse(const std::vector<ScheduledChunk>& chunks) const;
  Content ContentAt(SequenceId id, int64_t position) const;
  void Sample(SequenceId id);

  const Workload workload_;
  std::mt19937_64 random_;
  Scheduler scheduler_;
  std::vector<Content> kv_;
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
}

Content Simulation::ContentAt(SequenceId id, int64_t position) const {
  const SimulatedSequence& sequence = sequences_.at(id);
  const bool in_prompt = position < sequence.prompt_tokens;
  return {position, sequence.group, in_prompt ? -1 : id};
}

void Simulation::CheckBatch(const std::vector<ScheduledChunk>& chunks, int64_t preemptions) {
  ASSERT_FALSE(chunks.empty()) << "sequences wait and nothing runs";
  std::set<SequenceId> in_batch;
  int64_t tokens = 0;
  for (const ScheduledChunk& chunk : chunks) {
    ASSERT_GT(chunk.num_tokens, 0);
    ASSERT_TRUE(in_batch.insert(chunk.sequence).second) << "two chunks of one sequence";
    tokens += chunk.num_tokens;
  }
  ASSERT_LE(tokens, workload_.options.max_num_batched_tokens);
  ASSERT_LE(scheduler_.num_running(), workload_.options.max_num_seqs);
  ASSERT_TRUE(in_batch.contains(sequences_.begin()->first)) << "the oldest does not progress";
  int64_t left_out = 0;
  for (auto& [id, sequence] : sequences_) {
    if (!sequence.running || in_batch.contains(id)) continue;
    ++left_out;
    sequence.running = false;
    sequence.num_computed = 0;
    sequence.last_token_seconds = -1;
    outcome_.max_preemptions_of_a_sequence =
        std::max(outcome_.max_preemptions_of_a_sequence, ++sequence.preemptions);
  }
  ASSERT_EQ(left_out, preemptions) << "a running sequence was left out of a step";
}

void Simulation::Compute(const ScheduledChunk& chunk) {
  SimulatedSequence& sequence = sequences_.at(chunk.sequence);
  if (!sequence.started) {
    ASSERT_GT(chunk.sequence, newest_started_) << "started before an older one";
    newest_started_ = chunk.sequence;
    sequence.started = true;
  }
  ASSERT_TRUE(!sequence.running || chunk.context_start == sequence.num_computed);
  sequence.running = true;
  const int64_t end = chunk.context_start + chunk.num_tokens;
  ASSERT_LE(end, sequence.num_tokens);
  ASSERT_EQ(chunk.reaches_end, end == sequence.num_tokens);
  const int block_tokens = workload_.options.kv_block_tokens;
  ASSERT_GE(static_cast<int64_t>(chunk.kv_blocks.size()) * block_tokens, end);
  for (int64_t position = 0; position < end; ++position) {
    Content& content =
        kv_[chunk.kv_blocks[position / block_tokens] * block_tokens + position % block_tokens];
    const Content expected = ContentAt(chunk.sequence, position);
    if (position >= chunk.context_start) content = expected;
    ASSERT_EQ(content, expected) << "the KV cache holds another token";
  }
  outcome_.prompt_tokens_computed +=
      std::max<int64_t>(0, std::min(end, sequence.prompt_tokens) - chunk.context_start);
  sequence.num_computed = end;
}

void Simulation::CheckBlocksInUse(const std::vector<ScheduledChunk>& chunks) const {
  // Every running sequence has a chunk, so these are all the blocks that may be held.
  std::set<int32_t> held;
  for (const ScheduledChunk& chunk : chunks) {
    held.insert(chunk.kv_blocks.begin(), chunk.kv_blocks.end());
  }
  ASSERT_EQ(scheduler_.blocks().num_used(), static_cast<int>(held.size())) << "a block leaked";
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
  const int64_t preemptions = scheduler_.num_preemptions();
  const std::vector<ScheduledChunk>& chunks = scheduler_.Schedule();
  ASSERT_NO_FATAL_FAILURE(CheckBatch(chunks, scheduler_.num_preemptions() - preemptions));
  // Contexts are checked against the cache before this step's writes of younger chunks.
  int64_t tokens = 0;
  std::vector<SequenceId> sampled;
  for (const ScheduledChunk& chunk : chunks) {
    ASSERT_NO_FATAL_FAILURE(Compute(chunk));
    tokens += chunk.num_tokens;
    if (chunk.reaches_end) sampled.push_back(chunk.sequence);
  }
  ASSERT_NO_FATAL_FAILURE(CheckBlocksInUse(chunks));
  const double step_seconds =
      workload_.seconds_per_step + static_cast<double>(tokens) * workload_.seconds_per_token;
  now_seconds_ += step_seconds;
  outcome_.max_step_seconds = std::max(outcome_.max_step_seconds, step_seconds);
  ++outcome_.steps;
  for (SequenceId id : sampled) Sample(id);
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
