// Builds the policy's view of one layer's misses and brings its plan back as slots. Used by both
// drivers; engine thread only.
//
// A layer is ranked afresh each time, and the policy is shown only those of its misses and
// residents that can change places: the others would not change its plan. Of other layers it is
// shown donors, the least worthy residents above their layers' floors, which are found by ranking
// all layers every few steps, because that costs more than everything else here.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "cache/cache_state.h"
#include "cache/worth_list.h"

namespace moed::cache {

struct Admission {
  std::vector<int32_t> admitted;  // into the misses, most wanted first
  std::vector<int32_t> victims;   // slots to evict; at most one an admission
};

// What an exchange of a miss for a victim costs, and so what it takes, where the policy asks for
// anything.
enum class Exchange : uint8_t {
  kFree,      // the miss is read into one slot or another: it must be worth more
  kByDevice,  // a fill: WorthMoreThanByChance, for a victim of the layer that the last step did not
              // use, since the device fills no slot that its step reads
};

class AdmissionPlanner {
 public:
  explicit AdmissionPlanner(const CacheState* state) : state_(*state) {}

  // Which of `misses` (distinct experts of `layer` without a slot) shall become resident, if
  // `free_slots` may be taken and the victims' slots follow. Nothing is changed. Valid until the
  // next call.
  const Admission& Decide(int layer, std::span<const int> misses, int free_slots,
                          Exchange exchange);

  // The same without evictions.
  const Admission& DecideWithoutVictims(int layer, std::span<const int> misses, int free_slots);

  // The slots whose eviction brings the residents down to `limit`, the least worthy first and no
  // layer below its floor; fewer if pins are in the way.
  std::vector<int32_t> Surplus(int32_t limit) const;

 private:
  using RankedSlot = std::pair<double, int32_t>;  // worth, slot
  struct ShownDonor {
    int32_t slot;
    ExpertView view;
  };

  void StartView(int layer, std::span<const int> misses, int free_slots, Exchange exchange);
  void FindResidents();
  void FindShownDonors();
  void FindCandidates();
  void ListCandidates(double above);
  void NarrowExchange();  // drops what cannot change places
  void ShowView();
  // At most so many of the misses find a place.
  size_t MostAdmissions() const;
  const Admission& AskPolicy();

  void SetView(int expert, ExpertView* view) const;
  bool Donates(int32_t slot) const;
  void FindDonors();
  std::vector<RankedSlot> AllDonors() const;

  const CacheState& state_;
  std::vector<int32_t> donors_;  // slots, the least worthy first, as of donors_step_
  int64_t donors_step_ = -1;
  // Of the decision under way; kept for their memory.
  int layer_ = 0;
  int32_t free_slots_ = 0;
  int32_t owed_ = 0;  // slots that the layer may take from others, whatever the worth
  bool only_worth_more_ = true;
  Exchange exchange_ = Exchange::kFree;
  std::span<const int> misses_;
  CacheState::Ranking ranking_;
  std::vector<double> miss_worths_;     // of each miss
  WorthList<int32_t> shown_misses_;     // those that may be admitted: their places in the misses
  WorthList<int> residents_;            // of the layer, that may be victims
  WorthList<ShownDonor> shown_donors_;  // of other layers, that may be victims
  std::vector<ExpertView> candidates_;
  std::vector<ExpertView> evictable_;
  std::vector<int32_t> evictable_slots_;
  double least_worth_ = 0;  // of residents_ and shown_donors_
  double best_worth_ = 0;   // of the misses: what is worth no less stays
  std::vector<double> best_;
  Admission admission_;
};

}  // namespace moed::cache
