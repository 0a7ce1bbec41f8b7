// What the server measures of requests: latency and length histograms, ended calls by code. One
// object lives as long as the server; a RequestTimer follows each request. Lock-free.
#pragma once

#include <grpcpp/support/status_code_enum.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <vector>

#include "runtime/engine/request.h"
#include "server/histogram.h"

namespace moed::server {

class RequestMetrics {
 public:
  static constexpr int kNumCodes = 17;  // gRPC's status codes

  explicit RequestMetrics(int64_t max_model_len);

  void CountEnd(grpc::StatusCode code);
  int64_t ended(int code) const { return ended_by_code_[code].load(std::memory_order_relaxed); }

  Histogram time_to_first_token_seconds;
  Histogram inter_token_seconds;
  Histogram end_to_end_seconds;
  Histogram queue_seconds;
  Histogram prompt_tokens;
  Histogram generation_tokens;

 private:
  std::array<std::atomic<int64_t>, kNumCodes> ended_by_code_ = {};
};

// Times one request. Used by its sink alone, calls never overlap.
class RequestTimer {
 public:
  RequestTimer(RequestMetrics* metrics, int num_sequences)
      : metrics_(metrics), start_(Clock::now()), last_token_(num_sequences) {}

  void OnDelta(const engine::Delta& delta);
  void OnDone(const engine::Usage& usage);

 private:
  using Clock = std::chrono::steady_clock;

  RequestMetrics* metrics_;
  Clock::time_point start_;
  bool first_token_seen_ = false;
  std::vector<Clock::time_point> last_token_;  // by sequence; the epoch: none yet
};

}  // namespace moed::server
