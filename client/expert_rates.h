// What the expert cache and the server did between two snapshots of their counters. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "proto/moed/v1/experts.pb.h"

namespace moed::client {

struct LayerRates {
  int layer = 0;
  int64_t hits = 0;
  int64_t misses = 0;
  double bytes_paged_per_second = 0;
  int resident = 0;
  // An entry an expert; empty if the snapshots are without experts.
  std::vector<int64_t> tokens;
  std::vector<bool> is_resident;
};

struct ExpertRates {
  double seconds = 0;  // between the snapshots
  double prompt_tokens_per_second = 0;
  double generation_tokens_per_second = 0;
  double steps_per_second = 0;
  double bytes_paged_per_second = 0;
  double stall_share = 0;  // of the time, 0 to 1
  int64_t hits = 0;
  int64_t misses = 0;
  std::vector<LayerRates> layers;
};

// `before` null: since the server's start. A server that restarted in between counts as new.
ExpertRates RatesBetween(const v1::ExpertStats* before, const v1::ExpertStats& now);

}  // namespace moed::client
