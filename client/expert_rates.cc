#include "client/expert_rates.h"

#include <algorithm>

namespace moed::client {
namespace {

LayerRates LayerBetween(const v1::LayerStats& before, const v1::LayerStats& now, double seconds) {
  LayerRates rates;
  rates.layer = now.layer();
  rates.hits = now.hits_total() - before.hits_total();
  rates.misses = now.misses_total() - before.misses_total();
  rates.bytes_paged_per_second =
      static_cast<double>(now.bytes_paged_total() - before.bytes_paged_total()) / seconds;
  rates.resident = now.resident();
  for (int i = 0; i < now.expert_tokens_total_size(); ++i) {
    const bool known = i < before.expert_tokens_total_size();
    rates.tokens.push_back(now.expert_tokens_total(i) -
                           (known ? before.expert_tokens_total(i) : 0));
  }
  rates.is_resident.assign(now.expert_resident().begin(), now.expert_resident().end());
  rates.is_resident.resize(rates.tokens.size());
  return rates;
}

}  // namespace

ExpertRates RatesBetween(const v1::ExpertStats* before, const v1::ExpertStats& now) {
  static const v1::ExpertStats start;
  const bool restarted =
      before != nullptr && (before->serving().uptime_seconds() > now.serving().uptime_seconds() ||
                            before->layers_size() != now.layers_size());
  const bool from_start = before == nullptr || restarted;
  const v1::ServingStats& earlier = (from_start ? start : *before).serving();
  const v1::ServingStats& later = now.serving();

  ExpertRates rates;
  // Two snapshots in one tick of the clock would divide by zero.
  rates.seconds = std::max(1e-3, later.uptime_seconds() - earlier.uptime_seconds());
  const auto per_second = [&](int64_t a, int64_t b) {
    return static_cast<double>(b - a) / rates.seconds;
  };
  rates.prompt_tokens_per_second =
      per_second(earlier.prompt_tokens_total(), later.prompt_tokens_total());
  rates.generation_tokens_per_second =
      per_second(earlier.generation_tokens_total(), later.generation_tokens_total());
  rates.steps_per_second = per_second(earlier.steps_total(), later.steps_total());
  double stall_seconds = 0;
  for (int i = 0; i < now.layers_size(); ++i) {
    static const v1::LayerStats none;
    const v1::LayerStats& layer_before = from_start ? none : before->layers(i);
    rates.layers.push_back(LayerBetween(layer_before, now.layers(i), rates.seconds));
    rates.hits += rates.layers.back().hits;
    rates.misses += rates.layers.back().misses;
    rates.bytes_paged_per_second += rates.layers.back().bytes_paged_per_second;
    stall_seconds += now.layers(i).stall_seconds_total() - layer_before.stall_seconds_total();
  }
  rates.stall_share = std::clamp(stall_seconds / rates.seconds, 0.0, 1.0);
  return rates;
}

}  // namespace moed::client
