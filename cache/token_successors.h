// Which experts of a layer serve the token after a token: text goes on from a token as it went on
// from that token before. Told apart are tokens by the experts of the first MoE layer, whose router
// sees little more than the token itself; so that neither ids nor text are needed or kept, on every
// driver. Only steps of one token count. Owned by RoutingStats, engine thread only.
//
// Memory is bounded: a table of contexts, of each the few experts that followed most in each layer.
// A new context takes the place of the least recently seen of four.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "cache/expert_index.h"
#include "cache/routing_trace.h"

namespace moed::cache {

class TokenSuccessors {
 public:
  // Off if `max_bytes` holds no table worth having. top_k: experts that the router gives a token.
  TokenSuccessors(const ExpertIndex& index, int top_k, int64_t max_bytes);

  void BeginStep();
  // What one layer's router chose in this step; layers in rising order.
  void ObserveLayer(int layer, std::span<const ExpertLoad> experts);

  // The share, 0 to 1, of the times that this step's token came before after which the next step
  // used `key`. Of a layer that was observed in this step.
  float NextUse(ExpertKey key) const { return next_.empty() ? 0 : next_[index_.Of(key)]; }
  // [experts of the layer], or empty: nothing is known of the token.
  std::span<const float> NextUses(int layer) const {
    if (Belief(layer) == 0) return {};
    return {next_.data() + index_.FirstOf(layer), static_cast<size_t>(index_.num_experts(layer))};
  }
  // What that is worth for the layer, 0 to 1: it grows with those times; 0: the token is new.
  float Belief(int layer) const { return belief_.empty() ? 0 : belief_[layer]; }

  int64_t bytes() const;

 private:
  static constexpr int kFollowers = 16;
  // Shares are fractions of 2^16 - 1.
  struct Follower {
    uint16_t expert = 0;
    uint16_t share = 0;
  };
  using Followers = std::array<Follower, kFollowers>;
  struct Context {
    uint32_t signature = 0;
    int32_t times = 0;  // that it came, this step's included
    int64_t last_step = -1;
  };

  int64_t Find(std::span<const ExpertLoad> experts);
  Followers& FollowersOf(int64_t context, int layer) {
    return followers_[context * num_rows_ + row_of_layer_[layer]];
  }
  void Learn(int layer, std::span<const ExpertLoad> experts);
  void Predict(int layer);

  ExpertIndex index_;
  size_t top_k_;
  int first_layer_ = -1;
  int64_t num_rows_ = 0;               // layers with experts
  std::vector<int64_t> row_of_layer_;  // [layers]
  std::vector<Context> contexts_;
  std::vector<Followers> followers_;  // [contexts][rows]
  std::vector<float> next_;           // [all experts]
  std::vector<float> belief_;         // [layers]
  int64_t previous_ = -1;             // context of the last step; -1: none
  int64_t current_ = -1;
  int64_t step_ = 0;
  std::vector<int32_t> sorted_;  // kept for its memory
};

}  // namespace moed::cache
