#include "runtime/model/expert_traffic.h"

namespace moed::model {

void ExpertTraffic::BeginStep(const StepInput& input) {
  shares_.assign(input.chunks.size(), ExpertShare{});
  token_chunk_.clear();
  token_weight_.clear();
  for (size_t chunk = 0; chunk < input.chunks.size(); ++chunk) {
    const int tokens = input.chunks[chunk].num_tokens;
    token_chunk_.insert(token_chunk_.end(), tokens, static_cast<int32_t>(chunk));
    token_weight_.insert(token_weight_.end(), tokens, 1.0f / static_cast<float>(tokens));
  }
}

std::span<const cache::ExpertLoad> ExpertTraffic::Loads(const ExpertGroups& groups) {
  loads_.clear();
  for (int expert : groups.experts()) {
    const std::span<const int32_t> rows = groups.rows(expert);
    cache::ExpertLoad load = {.expert = expert, .tokens = static_cast<int32_t>(rows.size())};
    for (int32_t row : rows) load.weight += token_weight_[row / groups.top_k()];
    loads_.push_back(load);
  }
  return loads_;
}

void ExpertTraffic::Charge(const ExpertGroups& groups, const LayerTraffic& traffic) {
  for (int expert : traffic.hits) {
    const std::span<const int32_t> choosers = Choosers(groups, expert);
    for (int32_t chunk : choosers) {
      shares_[chunk].hits += 1.0 / static_cast<double>(choosers.size());
    }
  }
  const double stall_per_miss =
      traffic.misses.empty() ? 0
                             : traffic.stall_seconds / static_cast<double>(traffic.misses.size());
  for (int expert : traffic.misses) {
    const std::span<const int32_t> choosers = Choosers(groups, expert);
    const double part = 1.0 / static_cast<double>(choosers.size());
    for (int32_t chunk : choosers) {
      shares_[chunk].misses += part;
      shares_[chunk].bytes_paged += part * static_cast<double>(expert_bytes_);
      shares_[chunk].stall_seconds += part * stall_per_miss;
    }
  }
}

std::span<const int32_t> ExpertTraffic::Choosers(const ExpertGroups& groups, int expert) {
  choosers_.clear();
  for (int32_t row : groups.rows(expert)) {
    const int32_t chunk = token_chunk_[row / groups.top_k()];
    if (choosers_.empty() || choosers_.back() != chunk) choosers_.push_back(chunk);
  }
  return choosers_;
}

}  // namespace moed::model
