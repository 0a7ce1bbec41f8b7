#include "client/bench_plan.h"

#include <algorithm>
#include <random>
#include <utility>

namespace moed::client {

BenchPlan MakeBenchPlan(const BenchSettings& settings, const LengthDistribution& prompt,
                        const LengthDistribution& output, const v1::GenerateRequest& base) {
  std::mt19937_64 random(settings.seed);
  std::uniform_int_distribution<int32_t> token(
      0, static_cast<int32_t>(std::max<int64_t>(1, settings.vocab_size) - 1));
  const bool open_loop = settings.rate_per_second > 0;
  std::exponential_distribution<double> gap_seconds(open_loop ? settings.rate_per_second : 1);

  BenchPlan plan;
  plan.concurrency = open_loop ? 0 : settings.concurrency;
  double arrival_seconds = 0;
  for (int64_t i = 0; i < settings.num_requests; ++i) {
    BenchPlan::Request request{base, arrival_seconds};
    auto* ids = request.request.mutable_tokens()->mutable_ids();
    for (int64_t left = prompt.Sample(random); left > 0; --left) ids->Add(token(random));
    const int64_t length = output.Sample(random);
    request.request.mutable_stopping()->set_max_tokens(length);
    request.request.mutable_stopping()->set_min_tokens(length);
    request.request.mutable_stopping()->set_ignore_eos(true);
    request.request.mutable_sampling()->set_seed(random());
    plan.requests.push_back(std::move(request));
    if (open_loop) arrival_seconds += gap_seconds(random);
  }
  return plan;
}

}  // namespace moed::client
