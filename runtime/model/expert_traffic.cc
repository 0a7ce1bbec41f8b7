#include "runtime/model/expert_traffic.h"

#include <algorithm>

namespace moed::model {

void ExpertTraffic::BeginStep(const StepInput& input) {
  shares_.assign(input.chunks.size(), ExpertShare{});
  token_chunk_.clear();
  chunk_end_.clear();
  chunk_weight_.clear();
  for (size_t chunk = 0; chunk < input.chunks.size(); ++chunk) {
    const int tokens = input.chunks[chunk].num_tokens;
    token_chunk_.insert(token_chunk_.end(), tokens, static_cast<int32_t>(chunk));
    chunk_end_.push_back(static_cast<int32_t>(token_chunk_.size()));
    chunk_weight_.push_back(1.0f / static_cast<float>(tokens));
  }
}

std::span<const cache::ExpertLoad> ExpertTraffic::Loads(const ExpertGroups& groups) {
  loads_.clear();
  for (int expert : groups.experts()) {
    cache::ExpertLoad load = {.expert = expert,
                              .tokens = static_cast<int32_t>(groups.rows(expert).size())};
    ForEachChooser(groups, expert, [&](int32_t chunk, int64_t tokens) {
      load.weight += static_cast<float>(tokens) * chunk_weight_[chunk];
    });
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

// Rows rise, so those of a chunk's tokens are neighbours: of a long prompt they are not looked at
// one by one.
template <typename Function>
void ExpertTraffic::ForEachChooser(const ExpertGroups& groups, int expert,
                                   const Function& function) const {
  const std::span<const int32_t> rows = groups.rows(expert);
  for (auto row = rows.begin(); row != rows.end();) {
    const int32_t chunk = token_chunk_[*row / groups.top_k()];
    const auto end = std::lower_bound(row + 1, rows.end(), chunk_end_[chunk] * groups.top_k());
    function(chunk, end - row);
    row = end;
  }
}

std::span<const int32_t> ExpertTraffic::Choosers(const ExpertGroups& groups, int expert) {
  choosers_.clear();
  ForEachChooser(groups, expert, [&](int32_t chunk, int64_t) { choosers_.push_back(chunk); });
  return choosers_;
}

}  // namespace moed::model
