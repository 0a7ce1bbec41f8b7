#include "cache/token_successors.h"

#include <algorithm>

namespace moed::cache {
namespace {

constexpr int64_t kWays = 4;
constexpr int64_t kMostContexts = 8192;
constexpr int64_t kFewestContexts = 256;
// A context remembers about this many of its times.
constexpr int32_t kMaxTimes = 256;
// Times before a context is believed in half.
constexpr float kPriorTimes = 2;
constexpr float kWhole = 65535;

}  // namespace

TokenSuccessors::TokenSuccessors(const ExpertIndex& index, int top_k, int64_t max_bytes)
    : index_(index), top_k_(static_cast<size_t>(top_k)) {
  for (int layer = 0; layer < index.num_layers(); ++layer) {
    row_of_layer_.push_back(num_rows_);
    if (index.num_experts(layer) == 0) continue;
    if (first_layer_ < 0) first_layer_ = layer;
    ++num_rows_;
  }
  if (num_rows_ == 0) return;
  const auto context_bytes = static_cast<int64_t>(sizeof(Context) + num_rows_ * sizeof(Followers));
  const int64_t contexts = std::min(kMostContexts, max_bytes / context_bytes) / kWays * kWays;
  if (contexts < kFewestContexts) return;
  contexts_.resize(contexts);
  followers_.resize(contexts * num_rows_);
  next_.resize(index.total_experts(), 0);
  belief_.resize(index.num_layers(), 0);
}

int64_t TokenSuccessors::bytes() const {
  return static_cast<int64_t>(contexts_.size() * sizeof(Context) +
                              followers_.size() * sizeof(Followers) +
                              (next_.size() + belief_.size()) * sizeof(float));
}

void TokenSuccessors::BeginStep() {
  ++step_;
  previous_ = current_;
  current_ = -1;
}

void TokenSuccessors::ObserveLayer(int layer, std::span<const ExpertLoad> experts) {
  if (contexts_.empty()) return;
  if (layer == first_layer_) current_ = Find(experts);
  belief_[layer] = 0;
  if (current_ < 0) return;
  if (previous_ >= 0) Learn(layer, experts);
  Predict(layer);
}

// The context of a step of one token, or -1.
int64_t TokenSuccessors::Find(std::span<const ExpertLoad> experts) {
  if (experts.size() != top_k_) return -1;
  sorted_.clear();
  for (const ExpertLoad& load : experts) {
    if (load.tokens != 1) return -1;
    sorted_.push_back(load.expert);
  }
  std::sort(sorted_.begin(), sorted_.end());
  uint64_t hash = 0;
  for (int32_t expert : sorted_) {
    hash = (hash ^ static_cast<uint64_t>(expert + 1)) * 0x9E3779B97F4A7C15;
    hash ^= hash >> 29;
  }
  const auto signature = static_cast<uint32_t>(hash >> 32);
  const int64_t ways = static_cast<int64_t>(contexts_.size()) / kWays;
  const int64_t first = static_cast<int64_t>((hash & 0xFFFFFFFF) * ways >> 32) * kWays;
  int64_t found = first;
  for (int64_t context = first; context < first + kWays; ++context) {
    if (contexts_[context].times > 0 && contexts_[context].signature == signature) {
      found = context;
      break;
    }
    if (contexts_[context].last_step < contexts_[found].last_step) found = context;
  }
  Context& context = contexts_[found];
  if (context.times == 0 || context.signature != signature) {
    context = {.signature = signature};
    std::fill_n(followers_.begin() + found * num_rows_, num_rows_, Followers{});
    if (found == previous_) previous_ = -1;
  }
  context.times = std::min(context.times + 1, kMaxTimes);
  context.last_step = step_;
  return found;
}

void TokenSuccessors::Learn(int layer, std::span<const ExpertLoad> experts) {
  // A token that follows itself has not been followed in its latest time yet.
  const int32_t times = contexts_[previous_].times - (previous_ == current_ ? 1 : 0);
  const auto part = static_cast<float>(std::max(times, 1));
  Followers& followers = FollowersOf(previous_, layer);
  for (Follower& follower : followers) {
    follower.share = static_cast<uint16_t>(static_cast<float>(follower.share) * (1 - 1 / part));
  }
  for (const ExpertLoad& load : experts) {
    auto place = std::find_if(followers.begin(), followers.end(), [&](const Follower& follower) {
      return follower.share > 0 && follower.expert == load.expert;
    });
    if (place == followers.end()) {
      place =
          std::min_element(followers.begin(), followers.end(),
                           [](const Follower& a, const Follower& b) { return a.share < b.share; });
      *place = {.expert = static_cast<uint16_t>(load.expert), .share = 0};
    }
    const float share = static_cast<float>(place->share) + kWhole / part;
    place->share = static_cast<uint16_t>(std::min(share, kWhole));
  }
}

void TokenSuccessors::Predict(int layer) {
  const auto times = static_cast<float>(contexts_[current_].times - 1);
  if (times == 0) return;
  belief_[layer] = times / (times + kPriorTimes);
  float* const next = next_.data() + index_.FirstOf(layer);
  std::fill_n(next, index_.num_experts(layer), 0.0F);
  for (const Follower& follower : FollowersOf(current_, layer)) {
    if (follower.share > 0) next[follower.expert] = static_cast<float>(follower.share) / kWhole;
  }
}

}  // namespace moed::cache
