// Who computes a layer's cold experts when link and CPU work at once: the device, straight from
// host memory over the link, or the host's CPU, whose sums come back. Experts are shared out whole:
// to the link those that fill a slot on their way, then those of the most tokens, since it brings
// one of many tokens in the time of one of few, while the CPU computes it more slowly. The one in
// which the link's part ends is cut along its neurons, so that both end together. A fill needs all
// of an expert to come over the link, so it waits while that would keep the CPU waiting for the
// link.
//
// Pure and constexpr, so that kernels and host compute the same from the same numbers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moed::backend {

// Neurons of a tile, the unit in which an expert is cut; its last one may be shorter.
inline constexpr int kColdTileNeurons = 8;
// Tokens for which an expert's weights come over the link once.
inline constexpr int kColdPassTokens = 32;

// Shares of the link are in 65536ths of a layer's cold work.
inline constexpr uint32_t kAllOverLink = 1u << 16;

constexpr int ColdTiles(int64_t intermediate) {
  return static_cast<int>((intermediate + kColdTileNeurons - 1) / kColdTileNeurons);
}

constexpr int ColdPasses(int tokens) { return (tokens + kColdPassTokens - 1) / kColdPassTokens; }

// Work of an expert, in passes over a tile.
constexpr int64_t ColdCost(int tiles, int tokens) { return int64_t{tiles} * ColdPasses(tokens); }

// Whether an expert of `tokens` goes to the link before the other does, where neither fills a slot.
constexpr bool ComesBefore(int tokens, int expert, int other_tokens, int other) {
  return tokens != other_tokens ? tokens > other_tokens : expert < other;
}

// Whether an expert of `cost` may fill a slot now, when others of `filling_cost` do: if the link's
// share has room for it, or if the expert was read `waited` times without filling, and what that
// took of the link is as much as this step's link would be over its share. So a fill that is put
// off costs at most about twice what it would have cost had the future been known.
constexpr bool FillFits(uint32_t link_share, int64_t total_cost, int64_t filling_cost, int64_t cost,
                        uint32_t waited) {
  if (link_share == 0) return true;  // the link is there for fills alone
  const int64_t over = (filling_cost + cost) * kAllOverLink - total_cost * link_share;
  return over <= int64_t{waited} * cost * link_share;
}

// What the link takes of the experts that fill no slot. `filling_cost`: of those that do, which it
// takes in any case; both costs over all cold experts of the layer.
constexpr int64_t LinkBudget(uint32_t link_share, int64_t total_cost, int64_t filling_cost) {
  const int64_t share = (total_cost * link_share + kAllOverLink / 2) / kAllOverLink;
  return share > filling_cost ? share - filling_cost : 0;
}

// Tiles of an expert, from its first on, that go over the link; the CPU computes the others.
// `cost_before`: of those before it (ComesBefore).
constexpr int LinkTiles(int64_t budget, int64_t cost_before, int tiles, int tokens) {
  const int64_t left = (budget - cost_before) / ColdPasses(tokens);
  if (left <= 0) return 0;
  return left < tiles ? static_cast<int>(left) : tiles;
}

struct ColdExpert {
  int tokens = 0;  // at least 1
  bool fills = false;
};

// Tiles over the link of each of a layer's cold experts of `tiles` tiles.
inline std::vector<int> DivideColdExperts(std::span<const ColdExpert> experts, int tiles,
                                          uint32_t link_share) {
  int64_t total = 0;
  int64_t filling = 0;
  for (const ColdExpert& expert : experts) {
    total += ColdCost(tiles, expert.tokens);
    if (expert.fills) filling += ColdCost(tiles, expert.tokens);
  }
  const int64_t budget = LinkBudget(link_share, total, filling);
  std::vector<int> over_link;
  for (size_t e = 0; e < experts.size(); ++e) {
    int64_t before = 0;
    for (size_t i = 0; i < experts.size(); ++i) {
      if (experts[i].fills || !ComesBefore(experts[i].tokens, static_cast<int>(i),
                                           experts[e].tokens, static_cast<int>(e))) {
        continue;
      }
      before += ColdCost(tiles, experts[i].tokens);
    }
    const ColdExpert& expert = experts[e];
    over_link.push_back(expert.fills ? tiles : LinkTiles(budget, before, tiles, expert.tokens));
  }
  return over_link;
}

}  // namespace moed::backend
