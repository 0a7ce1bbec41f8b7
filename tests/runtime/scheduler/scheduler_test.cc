#include "runtime/scheduler/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace moed::scheduler {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

SchedulerOptions SmallOptions() {
  return {.max_num_seqs = 4,
          .max_num_batched_tokens = 8,
          .max_model_len = 64,
          .num_kv_blocks = 16,
          .kv_block_tokens = 4};
}

// Each chunk as "sequence:start+count", with "!" if it is sampled.
std::vector<std::string> NextStep(Scheduler& scheduler) {
  std::vector<std::string> step;
  std::vector<SequenceId> sampled;
  for (const ScheduledChunk& chunk : scheduler.Schedule()) {
    step.push_back(absl::StrCat(chunk.sequence, ":", chunk.context_start, "+", chunk.num_tokens,
                                chunk.reaches_end ? "!" : ""));
    if (chunk.reaches_end) sampled.push_back(chunk.sequence);
  }
  for (SequenceId id : sampled) scheduler.Append(id);
  return step;
}

TEST(SchedulerTest, PrefillsALongPromptInChunksThenDecodes) {
  Scheduler scheduler(SmallOptions());
  scheduler.Add(0, 0, 19);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:0+8"));
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:8+8"));
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:16+3!"));
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:19+1!"));
}

TEST(SchedulerTest, BatchesDecodesWithTheChunksOfAPrefill) {
  Scheduler scheduler(SmallOptions());
  scheduler.Add(0, 0, 2);
  scheduler.Add(1, 1, 3);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:0+2!", "1:0+3!"));
  scheduler.Add(2, 2, 10);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:2+1!", "1:3+1!", "2:0+6"));
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:3+1!", "1:4+1!", "2:6+4!"));
}

TEST(SchedulerTest, FillsTheStepWithTheNextPromptsInOrder) {
  Scheduler scheduler(SmallOptions());
  for (int id = 0; id < 4; ++id) scheduler.Add(id, id, 3);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:0+3!", "1:0+3!", "2:0+2"));
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:3+1!", "1:3+1!", "2:2+1!", "3:0+3!"));
}

TEST(SchedulerTest, RunsNoMoreSequencesThanAllowed) {
  SchedulerOptions options = SmallOptions();
  options.max_num_seqs = 2;
  Scheduler scheduler(options);
  for (int id = 0; id < 3; ++id) scheduler.Add(id, id, 1);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:0+1!", "1:0+1!"));
  EXPECT_EQ(scheduler.num_waiting(), 1);
  scheduler.Remove(0);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("1:1+1!", "2:0+1!"));
}

TEST(SchedulerTest, RunsNoMoreSequencesThanCanDecodeInOneStep) {
  SchedulerOptions options = SmallOptions();
  options.max_num_batched_tokens = 2;
  Scheduler scheduler(options);
  for (int id = 0; id < 3; ++id) scheduler.Add(id, id, 1);
  NextStep(scheduler);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:1+1!", "1:1+1!"));
}

TEST(SchedulerTest, AdmitsNoPromptWithoutBlocksForAllOfIt) {
  SchedulerOptions options = SmallOptions();
  options.num_kv_blocks = 4;
  Scheduler scheduler(options);
  scheduler.Add(0, 0, 4);
  scheduler.Add(1, 1, 12);  // three blocks, and one must be spare for sequence 0
  scheduler.Add(2, 2, 1);   // would fit, but must not overtake
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:0+4!"));
  scheduler.Remove(0);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("1:0+8"));
}

TEST(SchedulerTest, PreemptsTheNewestAndPrefillsItAgainWithWhatItGenerated) {
  SchedulerOptions options = SmallOptions();
  options.num_kv_blocks = 4;
  Scheduler scheduler(options);
  scheduler.Add(0, 0, 3);
  scheduler.Add(1, 1, 3);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:0+3!", "1:0+3!"));
  for (int i = 3; i < 8; ++i) {
    EXPECT_THAT(NextStep(scheduler),
                ElementsAre(absl::StrCat("0:", i, "+1!"), absl::StrCat("1:", i, "+1!")));
  }
  EXPECT_EQ(scheduler.num_preemptions(), 0);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:8+1!"));  // takes a block of sequence 1
  EXPECT_EQ(scheduler.num_preemptions(), 1);
  EXPECT_EQ(scheduler.num_waiting(), 1);
  scheduler.Remove(0);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("1:0+8"));
  EXPECT_THAT(NextStep(scheduler), ElementsAre("1:8+1!"));
}

TEST(SchedulerTest, PrefillsASharedPromptOnceAndForksAtItsLastFullBlock) {
  Scheduler scheduler(SmallOptions());
  for (int id = 0; id < 3; ++id) scheduler.Add(id, /*group=*/7, 14);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:0+8"));
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:8+6!"));  // the others wait for its blocks
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:14+1!", "1:12+2!", "2:12+2!"));
  EXPECT_EQ(scheduler.blocks().num_used(), 3 + 3);  // three shared, one of each
  for (int id = 0; id < 3; ++id) scheduler.Remove(id);
  EXPECT_EQ(scheduler.blocks().num_used(), 0);
}

TEST(SchedulerTest, ComputesTheLastPromptTokenOfEveryFork) {
  Scheduler scheduler(SmallOptions());
  for (int id = 0; id < 2; ++id) scheduler.Add(id, /*group=*/7, 8);  // ends with a full block
  NextStep(scheduler);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:8+1!", "1:4+4!"));
}

TEST(SchedulerTest, AForkWhoseSiblingsAreGonePrefillsByItself) {
  Scheduler scheduler(SmallOptions());
  scheduler.Add(0, /*group=*/7, 10);
  scheduler.Add(1, /*group=*/7, 10);
  NextStep(scheduler);
  scheduler.Remove(0);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("1:0+8"));
}

TEST(SchedulerTest, RemoveFreesEverythingInEveryState) {
  SchedulerOptions options = SmallOptions();
  options.num_kv_blocks = 6;
  Scheduler scheduler(options);
  scheduler.Add(0, 0, 4);   // will decode
  scheduler.Add(1, 1, 16);  // will be between two chunks
  scheduler.Add(2, 2, 4);   // will wait
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:0+4!", "1:0+4"));
  EXPECT_EQ(scheduler.num_waiting(), 1);
  scheduler.Remove(0);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("1:4+8"));
  scheduler.Remove(2);
  scheduler.Remove(1);
  EXPECT_TRUE(scheduler.empty());
  EXPECT_EQ(scheduler.blocks().num_used(), 0);
  EXPECT_THAT(NextStep(scheduler), IsEmpty());
}

// The pass in flight in the notation of NextStep.
std::vector<std::string> PassOf(const Scheduler& scheduler) {
  std::vector<std::string> pass;
  for (const ScheduledChunk& chunk : scheduler.pass()) {
    pass.push_back(absl::StrCat(chunk.sequence, ":", chunk.context_start, "+", chunk.num_tokens,
                                chunk.reaches_end ? "!" : ""));
  }
  return pass;
}

// As NextStep, with at most `max_joined` tokens of prefill beside decodes.
std::vector<std::string> NextStepJoining(Scheduler& scheduler, int64_t max_joined) {
  std::vector<std::string> step;
  std::vector<SequenceId> sampled;
  for (const ScheduledChunk& chunk : scheduler.Schedule(max_joined)) {
    step.push_back(absl::StrCat(chunk.sequence, ":", chunk.context_start, "+", chunk.num_tokens));
    if (chunk.reaches_end) sampled.push_back(chunk.sequence);
  }
  for (SequenceId id : sampled) scheduler.Append(id);
  return step;
}

TEST(SchedulerTest, JoinsShortPrefillAndMakesAPassOfALongOne) {
  Scheduler scheduler(SmallOptions());
  scheduler.Add(0, 0, 7);
  EXPECT_THAT(NextStepJoining(scheduler, 2), ElementsAre("0:0+7"));  // nothing decodes beside it
  scheduler.Add(1, 1, 2);
  EXPECT_THAT(NextStepJoining(scheduler, 2), ElementsAre("0:7+1", "1:0+2"));
  scheduler.Add(2, 2, 3);
  scheduler.Add(3, 3, 9);
  EXPECT_THAT(NextStepJoining(scheduler, 2), ElementsAre("0:8+1", "1:2+1"));
  EXPECT_THAT(PassOf(scheduler), ElementsAre("2:0+3!", "3:0+3"));
  EXPECT_THAT(NextStepJoining(scheduler, 2), ElementsAre("0:9+1", "1:3+1"));
  scheduler.FinishPass();
  scheduler.Append(2);
  EXPECT_THAT(NextStepJoining(scheduler, 8), ElementsAre("0:10+1", "1:4+1", "2:3+1", "3:3+5"));
}

TEST(SchedulerTest, APassHoldsTheBlocksOfWhatIsRemovedToItsEnd) {
  Scheduler scheduler(SmallOptions());
  scheduler.Add(0, 0, 2);
  NextStep(scheduler);
  scheduler.Add(1, 1, 4);
  scheduler.Add(2, 2, 2);
  NextStepJoining(scheduler, 2);
  EXPECT_THAT(PassOf(scheduler), ElementsAre("1:0+4!", "2:0+2!"));
  scheduler.Remove(1);
  EXPECT_EQ(scheduler.blocks().num_used(), 3);
  EXPECT_THAT(PassOf(scheduler), ElementsAre("1:0+4!", "2:0+2!"));
  scheduler.Remove(2);  // the last one: the pass has nobody to run for
  EXPECT_THAT(PassOf(scheduler), IsEmpty());
  EXPECT_EQ(scheduler.blocks().num_used(), 1);
}

TEST(SchedulerTest, AbandonsThePassIfDecodingNeedsItsBlocks) {
  SchedulerOptions options = SmallOptions();
  options.num_kv_blocks = 5;
  Scheduler scheduler(options);
  scheduler.Add(0, 0, 4);
  EXPECT_THAT(NextStep(scheduler), ElementsAre("0:0+4!"));
  scheduler.Add(1, 1, 8);
  EXPECT_THAT(NextStepJoining(scheduler, 0), ElementsAre("0:4+1"));
  EXPECT_THAT(PassOf(scheduler), ElementsAre("1:0+7"));
  for (int i = 5; i < 12; ++i) {
    EXPECT_THAT(NextStepJoining(scheduler, 0), ElementsAre(absl::StrCat("0:", i, "+1")));
    EXPECT_THAT(PassOf(scheduler), ElementsAre("1:0+7"));
  }
  EXPECT_THAT(NextStepJoining(scheduler, 0), ElementsAre("0:12+1"));
  EXPECT_THAT(PassOf(scheduler), IsEmpty());
  EXPECT_EQ(scheduler.num_preemptions(), 1);
  EXPECT_EQ(scheduler.blocks().num_used(), 4);
}

TEST(SchedulerTest, TheLongestSequenceIsBoundByTheModelAndByMemory) {
  SchedulerOptions options = SmallOptions();
  EXPECT_EQ(Scheduler(options).max_sequence_tokens(), 64);
  options.num_kv_blocks = 5;
  EXPECT_EQ(Scheduler(options).max_sequence_tokens(), 20);
}

TEST(SchedulerDeathTest, RefusesASequenceThatCanNeverRun) {
  Scheduler scheduler(SmallOptions());
  EXPECT_DEATH(scheduler.Add(0, 0, 65), "can never run");
}

}  // namespace
}  // namespace moed::scheduler
