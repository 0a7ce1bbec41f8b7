// Routing with the locality of real models, made up: each sequence keeps many of its experts from
// one token to the next and draws the rest from its domain's favourites.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <vector>

#include "cache/routing_trace.h"

namespace moed::cache {

struct SyntheticRouting {
  int layers = 0;
  int experts = 0;
  int top_k = 0;
  int sequences = 1;
  double keep = 0.4;  // probability that an expert serves the next token too
  double skew = 1.0;  // exponent of the Zipf law over a domain's experts
};

class SyntheticRouter {
 public:
  SyntheticRouter(const SyntheticRouting& routing, uint32_t seed)
      : routing_(routing), random_(seed), chosen_(routing.sequences * routing.layers) {
    std::vector<double> weights;
    for (int rank = 1; rank <= routing.experts; ++rank) {
      weights.push_back(std::pow(rank, -routing.skew));
    }
    rank_ = std::discrete_distribution<int>(weights.begin(), weights.end());
  }

  // One token of every sequence, all in `domain`.
  RoutingTrace Step(int domain) {
    RoutingTrace trace;
    for (int layer = 0; layer < routing_.layers; ++layer) {
      std::map<int, ExpertLoad> loads;
      for (int sequence = 0; sequence < routing_.sequences; ++sequence) {
        std::vector<int>& experts = chosen_[sequence * routing_.layers + layer];
        std::erase_if(experts, [&](int) { return Uniform() >= routing_.keep; });
        while (static_cast<int>(experts.size()) < routing_.top_k) {
          const int expert = Favourite(domain, layer, rank_(random_));
          if (std::find(experts.begin(), experts.end(), expert) == experts.end()) {
            experts.push_back(expert);
          }
        }
        for (int expert : experts) {
          ExpertLoad& load = loads[expert];
          load = {expert, load.tokens + 1, load.weight + 1};
        }
      }
      LayerRouting& routing = trace.layers.emplace_back();
      routing.layer = layer;
      for (const auto& [expert, load] : loads) routing.experts.push_back(load);
    }
    return trace;
  }

 private:
  double Uniform() { return static_cast<double>(random_()) / 4294967296.0; }
  // Another order of the experts for each domain and layer: 2 * odd + 1 is prime to a power of two.
  int Favourite(int domain, int layer, int rank) const {
    return (rank * (2 * ((domain * 31 + layer * 7) % routing_.experts) + 1) + domain * 5) %
           routing_.experts;
  }

  const SyntheticRouting routing_;
  std::mt19937 random_;
  std::discrete_distribution<int> rank_;
  std::vector<std::vector<int>> chosen_;  // [sequences * layers]
};

}  // namespace moed::cache
