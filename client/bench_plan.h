// A load test: which requests, and when. Pure; the same seed gives the same plan.
#pragma once

#include <cstdint>
#include <vector>

#include "client/length_distribution.h"
#include "proto/moed/v1/inference.pb.h"

namespace moed::client {

struct BenchPlan {
  struct Request {
    v1::GenerateRequest request;
    double arrival_seconds = 0;  // since the start; open loop only
  };
  std::vector<Request> requests;
  int concurrency = 0;  // closed loop: so many at a time; 0: open loop, by arrival
};

struct BenchSettings {
  int64_t num_requests = 0;
  double rate_per_second = 0;  // > 0: open loop, arrivals of a Poisson process
  int concurrency = 0;         // otherwise
  uint64_t seed = 0;
  int64_t vocab_size = 0;  // prompts are random ids below
};

// `base`: sampling and stopping of every request. Each gets a random prompt, exactly as many tokens
// to generate as `output` says, and a sampling seed of its own.
BenchPlan MakeBenchPlan(const BenchSettings& settings, const LengthDistribution& prompt,
                        const LengthDistribution& output, const v1::GenerateRequest& base);

}  // namespace moed::client
