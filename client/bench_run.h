// Carries out a load test: starts requests when the plan says and records when tokens come.
#pragma once

#include <atomic>
#include <vector>

#include "absl/status/status.h"
#include "client/bench_plan.h"
#include "client/client.h"

namespace moed::client {

// Times are seconds since the start of the run.
struct BenchRecord {
  double arrival_seconds = 0;  // planned, so that a late start counts as waiting
  std::vector<double> token_seconds;
  double end_seconds = 0;
  absl::Status status;
  v1::Usage usage;
};

// Blocks until every request has ended. A record for each request, in the plan's order.
// `finished`: counts ended requests while it runs, for a progress display.
std::vector<BenchRecord> RunBench(const BenchPlan& plan, absl::Duration timeout, Client& client,
                                  std::atomic<int64_t>& finished);

}  // namespace moed::client
