#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/runtime/scheduler/simulation.h"

namespace moed::scheduler {
namespace {

Workload RandomWorkload(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto draw = [&](int low, int high) {
    return std::uniform_int_distribution(low, high)(random);
  };
  Workload workload;
  workload.options = {.max_num_seqs = draw(1, 12),
                      .max_num_batched_tokens = draw(1, 64),
                      .max_model_len = draw(8, 128),
                      .num_kv_blocks = draw(1, 40),
                      .kv_block_tokens = draw(1, 8)};
  workload.options.num_kv_blocks =
      std::max(workload.options.num_kv_blocks, 8 / workload.options.kv_block_tokens);
  workload.num_requests = draw(1, 40);
  workload.arrivals_per_second = draw(1, 200);
  workload.max_prompt_tokens = draw(1, 60);
  workload.max_output_tokens = draw(1, 60);
  workload.max_n = draw(1, 5);
  workload.cancels_per_step = draw(0, 1) * 0.1;
  return workload;
}

// The same, with prefill beside decodes in passes of up to three slices.
Workload RandomWorkloadWithPasses(uint64_t seed) {
  Workload workload = RandomWorkload(seed);
  workload.max_joined_tokens = static_cast<int64_t>(seed % 5) * 4;
  workload.max_layers_per_slice = 1 + static_cast<int>(seed % 3);
  return workload;
}

TEST(SchedulerSimulationTest, KeepsItsInvariantsUnderRandomWorkloads) {
  int64_t preemptions = 0;
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    preemptions += Simulate(RandomWorkload(seed), seed).preemptions;
    if (HasFailure()) return;
  }
  EXPECT_GT(preemptions, 1000) << "the workloads no longer put memory under pressure";
}

TEST(SchedulerSimulationTest, KeepsItsInvariantsWithPassesInFlight) {
  int64_t preemptions = 0, finished = 0, abandoned = 0;
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    const Outcome outcome = Simulate(RandomWorkloadWithPasses(seed), seed);
    preemptions += outcome.preemptions;
    finished += outcome.passes_finished;
    abandoned += outcome.passes_abandoned;
    if (HasFailure()) return;
  }
  EXPECT_GT(preemptions, 1000) << "the workloads no longer put memory under pressure";
  EXPECT_GT(finished, 1000) << "the workloads no longer make passes";
  EXPECT_GT(abandoned, 100) << "the workloads no longer interrupt passes";
}

// More requests than can be served, and outputs that outgrow memory long after admission.
Workload OverloadedServer() {
  Workload workload;
  workload.options = {.max_num_seqs = 16,
                      .max_num_batched_tokens = 64,
                      .max_model_len = 512,
                      .num_kv_blocks = 64,
                      .kv_block_tokens = 16};
  workload.num_requests = 60;
  workload.arrivals_per_second = 100;
  workload.max_prompt_tokens = 60;
  workload.max_output_tokens = 240;
  workload.max_n = 2;
  return workload;
}

TEST(SchedulerSimulationTest, PreemptsNoSequenceMoreThanFourTimes) {
  int64_t preemptions = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    const Outcome outcome = Simulate(OverloadedServer(), seed);
    EXPECT_LE(outcome.max_preemptions_of_a_sequence, 4) << "seed " << seed;
    preemptions += outcome.preemptions;
  }
  EXPECT_GT(preemptions, 1000) << "the workload no longer puts memory under pressure";
}

TEST(SchedulerSimulationTest, DecodesAtEveryStepBesideALongPrefill) {
  Workload workload;
  workload.options = {.max_num_seqs = 8,
                      .max_num_batched_tokens = 256,
                      .max_model_len = 32768,
                      .num_kv_blocks = 4096,
                      .kv_block_tokens = 16};
  workload.num_requests = 16;
  workload.max_prompt_tokens = 16000;
  workload.max_output_tokens = 300;
  const Outcome outcome = Simulate(workload, 1);
  EXPECT_EQ(outcome.preemptions, 0);
  EXPECT_LE(outcome.max_decode_gap_seconds, outcome.max_step_seconds * 1.000001);
}

TEST(SchedulerSimulationTest, DecodesBetweenTheSlicesOfALongPrefill) {
  Workload workload;
  workload.options = {.max_num_seqs = 8,
                      .max_num_batched_tokens = 4096,
                      .max_model_len = 32768,
                      .num_kv_blocks = 8192,
                      .kv_block_tokens = 16};
  workload.num_requests = 16;
  workload.max_prompt_tokens = 16000;
  workload.max_output_tokens = 300;
  workload.max_joined_tokens = 64;
  const Outcome outcome = Simulate(workload, 1);
  EXPECT_EQ(outcome.preemptions, 0);
  EXPECT_GT(outcome.passes_finished, 10);
  // A step and one slice; without passes it would be a step and all slices.
  EXPECT_LE(outcome.max_decode_gap_seconds, outcome.max_step_seconds * 1.000001);
  EXPECT_LT(outcome.max_decode_gap_seconds, 4096 * workload.seconds_per_token / 2);
}

}  // namespace
}  // namespace moed::scheduler
