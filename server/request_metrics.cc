#include "server/request_metrics.h"

namespace moed::server {
namespace {

// The bucket bounds that dashboards made for vLLM expect.
constexpr double kFirstTokenSeconds[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                         1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
constexpr double kInterTokenSeconds[] = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                         .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
constexpr double kRequestSeconds[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                      30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};

// 1, 2, 5, 10, 20, 50, ... up to the largest not above `max`.
std::vector<double> LengthBounds(int64_t max) {
  std::vector<double> bounds;
  for (int64_t decade = 1; decade <= max; decade *= 10) {
    for (int64_t step : {1, 2, 5}) {
      if (decade * step <= max) bounds.push_back(static_cast<double>(decade * step));
    }
  }
  return bounds;
}

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

RequestMetrics::RequestMetrics(int64_t max_model_len)
    : time_to_first_token_seconds(kFirstTokenSeconds),
      inter_token_seconds(kInterTokenSeconds),
      end_to_end_seconds(kRequestSeconds),
      queue_seconds(kRequestSeconds),
      prompt_tokens(LengthBounds(max_model_len)),
      generation_tokens(LengthBounds(max_model_len)) {}

void RequestMetrics::CountEnd(grpc::StatusCode code) {
  if (code < 0 || code >= kNumCodes) code = grpc::StatusCode::UNKNOWN;
  ended_by_code_[code].fetch_add(1, std::memory_order_relaxed);
}

void RequestTimer::OnDelta(const engine::Delta& delta) {
  if (delta.tokens.empty()) return;
  const Clock::time_point now = Clock::now();
  if (!first_token_seen_) {
    first_token_seen_ = true;
    metrics_->time_to_first_token_seconds.Observe(Seconds(now - start_));
  }
  Clock::time_point& last = last_token_[delta.index];
  const auto count = static_cast<int64_t>(delta.tokens.size());
  if (last != Clock::time_point()) {
    metrics_->inter_token_seconds.Observe(Seconds(now - last) / static_cast<double>(count), count);
  } else if (count > 1) {
    metrics_->inter_token_seconds.Observe(0, count - 1);  // they came together
  }
  last = now;
}

void RequestTimer::OnDone(const engine::Usage& usage) {
  metrics_->end_to_end_seconds.Observe(Seconds(Clock::now() - start_));
  metrics_->queue_seconds.Observe(usage.queue_seconds);
  metrics_->prompt_tokens.Observe(static_cast<double>(usage.prompt_tokens));
  metrics_->generation_tokens.Observe(static_cast<double>(usage.completion_tokens));
}

}  // namespace moed::server
