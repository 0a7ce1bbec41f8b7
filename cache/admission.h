// Builds the policy's view of one layer's misses and brings its plan back as slots. Used by both
// drivers; engine thread only.
//
// A layer's own residents are looked at afresh each time. Of other layers only donors are shown:
// the least worthy residents above their layers' floors, found by one pass over all slots every few
// steps, because that pass costs more than everything else here.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/cache_state.h"

namespace moed::cache {

struct Admission {
  std::vector<int32_t> admitted;  // into the misses, most wanted first
  std::vector<int32_t> victims;   // slots to evict; at most one an admission
};

class AdmissionPlanner {
 public:
  explicit AdmissionPlanner(const CacheState* state) : state_(*state) {}

  // Which of `misses` (distinct experts of `layer` without a slot) shall become resident, if
  // `free_slots` may be taken and the victims' slots follow. Nothing is changed.
  Admission Decide(int layer, std::span<const int> misses, int free_slots);

  // The same without evictions.
  Admission DecideWithoutVictims(int layer, std::span<const int> misses, int free_slots);

  // The slots whose eviction brings the residents down to `limit`, the least worthy first and no
  // layer below its floor; fewer if pins are in the way.
  std::vector<int32_t> Surplus(int32_t limit) const;

 private:
  void StartView(int layer, std::span<const int> misses);
  Admission AskPolicy(int layer, int free_slots) const;
  void AddOwnResidents(int layer);
  void AddDonors(int layer, size_t wanted);
  void ShowDonors(int layer, size_t wanted);
  bool Donates(int32_t slot) const;
  void FindDonors();
  std::vector<int32_t> ByRisingWorth(std::vector<int32_t> slots, size_t count) const;

  const CacheState& state_;
  std::vector<int32_t> donors_;  // slots, the least worthy first, as of donors_step_
  int64_t donors_step_ = -1;
  // Of the view under construction; kept for their memory.
  std::vector<ExpertView> candidates_;
  std::vector<ExpertView> evictable_;
  std::vector<int32_t> evictable_slots_;
};

}  // namespace moed::cache
