// Runs the real scheduler on a virtual clock: requests arrive, steps take time by their tokens, KV
// blocks remember what every layer wrote to them, passes advance by layers between steps. Checks at
// every step what must always hold.
#pragma once

#include <cstdint>
#include <limits>

#include "runtime/scheduler/scheduler.h"

namespace moed::scheduler {

struct Workload {
  SchedulerOptions options;
  int num_requests = 20;
  double arrivals_per_second = 10;
  int max_prompt_tokens = 40;
  int max_output_tokens = 40;
  int max_n = 1;                // sequences of a request
  double cancels_per_step = 0;  // probability
  // Longer prefill beside decodes is a pass.
  int64_t max_joined_tokens = std::numeric_limits<int64_t>::max();
  int max_layers_per_slice = 1;
  double seconds_per_step = 0.01;  // plus, for each token of the step:
  double seconds_per_token = 0.001;
};

struct Outcome {
  int64_t steps = 0;
  int64_t preemptions = 0;
  int max_preemptions_of_a_sequence = 0;
  double max_decode_gap_seconds = 0;  // between two tokens of a sequence that was not preempted
  double max_step_seconds = 0;        // of steps; with a pass in flight, of a step and a slice
  int64_t passes_finished = 0;
  int64_t passes_abandoned = 0;
  int64_t prompt_tokens_computed = 0;
};

// Ends when all requests have; reports violations as GoogleTest failures that name the seed.
Outcome Simulate(const Workload& workload, uint64_t seed);

}  // namespace moed::scheduler
