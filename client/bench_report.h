// The figures of a load test. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "client/bench_run.h"

namespace moed::client {

// The least value that at least `percent` % of the values do not exceed (nearest rank); 0 of none.
double Percentile(std::span<const double> ascending, double percent);

struct LatencySummary {
  int64_t count = 0;
  double mean_seconds = 0;
  double p50_seconds = 0;
  double p90_seconds = 0;
  double p95_seconds = 0;
  double p99_seconds = 0;
  double max_seconds = 0;
};
LatencySummary Summarize(std::vector<double> seconds);

struct BenchReport {
  int64_t requests = 0;
  int64_t succeeded = 0;
  std::map<std::string, int64_t> failed;  // by gRPC status name
  double duration_seconds = 0;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  double expert_hits = 0;
  double expert_misses = 0;
  double bytes_paged = 0;
  double stall_seconds = 0;
  LatencySummary time_to_first_token;
  // Between tokens; those that come in one message are 0 apart.
  LatencySummary inter_token;
  LatencySummary end_to_end;

  nlohmann::json ToJson() const;
  std::string ToText() const;
};

// Latencies and tokens are of the requests that succeeded.
BenchReport MakeBenchReport(std::span<const BenchRecord> records);

}  // namespace moed::client
