// Which experts deserve a slot: pure functions of a snapshot, without clock, I/O or state. The
// drivers build the view, ask MakePlan, and carry the answer out.
#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/expert_key.h"

namespace moed::cache {

enum class PolicyKind : uint8_t {
  kRecencyFrequency,  // evicts what is least hot or recent, only for what is more
  kLru,               // evicts what was used longest ago, always admits
  kLfu,               // evicts the coldest by a slowly decaying frequency, always admits
  kStatic,            // fills free slots and evicts nothing, except for a kept expert
};

// INVALID_ARGUMENT, listing the names, for anything but: recency-frequency, lru, lfu, static.
absl::StatusOr<PolicyKind> ParsePolicy(absl::string_view name);
absl::string_view PolicyName(PolicyKind kind);

// Half-life of the decayed frequency that a policy ranks by, in steps.
double HalfLifeSteps(PolicyKind kind);

// One expert as a policy sees it.
struct ExpertView {
  ExpertKey key;
  int64_t last_use_step = -1;  // -1: never
  double heat = 0;             // decayed frequency, on any common scale (RoutingStats)
  double recent_heat = 0;      // what recent uses add, on the scale of heat
  bool keep = false;           // an operator wants it resident: before every other
};

// The question of one layer: which of its misses shall take whose slots?
struct CacheView {
  int layer = 0;
  // Misses of this layer that ask for a slot, in any order.
  std::span<const ExpertView> candidates;
  // Unpinned residents of this layer, and of any others that may be above their floors.
  std::span<const ExpertView> evictable;
  // Slots that may be taken without evicting anything.
  int free_slots = 0;
  // [layers]: experts resident now, and the slots that no other layer may take from this one.
  std::span<const int32_t> layer_resident;
  std::span<const int32_t> layer_floor;
  // What a unit of heat counts in uses, if chance shall be told from difference; 0: it shall not.
  double uses_per_heat = 0;
};

// Indices into the view. The first free_slots admissions take free slots; each further one takes
// the slot of one eviction, in order. No layer loses a slot to another at or below its floor, and a
// layer below its floor is given one whatever the heat.
struct Plan {
  absl::InlinedVector<int32_t, 32> admissions;  // into candidates, most wanted first
  absl::InlinedVector<int32_t, 32> evictions;   // into evictable
};

// Whether a miss must be worth more than its victim: then MakePlan neither admits what is worth no
// more than the least resident nor evicts what is worth no less than the best miss, except for free
// slots and floors.
bool AdmitsOnlyWorthMore(PolicyKind kind);

// Whether a miss is worth more than a resident by more than chance makes of experts that are used
// alike: by one standard error of the difference of their heats. Without it such experts take each
// other's places over and over, since the miss has just been used and the resident has not, and
// each time costs a fill and a few steps in which the slot serves nobody. For uses that come
// independently of each other, a count that decays by 2^-1/h a step has the variance
// sum p 4^-(i/h) = p h / (2 ln 2), half its mean.
bool WorthMoreThanByChance(double miss, double resident, double uses_per_heat);

Plan MakePlan(PolicyKind kind, const CacheView& view);

// What MakePlan compares: the resident of least worth leaves first.
inline double Worth(PolicyKind kind, const ExpertView& expert) {
  if (expert.keep) return std::numeric_limits<double>::infinity();
  switch (kind) {
    case PolicyKind::kRecencyFrequency:
      return expert.heat + expert.recent_heat;
    case PolicyKind::kLru:
      return static_cast<double>(expert.last_use_step);
    case PolicyKind::kLfu:
      return expert.heat;
    case PolicyKind::kStatic:
      return 0;
  }
  return 0;
}

// The properties of a layer's experts that an ExpertView has: [experts] each.
struct ExpertRows {
  std::span<const int64_t> last_use_step;
  std::span<const double> heat;
  std::span<const double> recent_heat;
  std::span<const uint8_t> keep;  // or empty: none
};
// Worth of each: [experts].
void Worths(PolicyKind kind, const ExpertRows& experts, std::span<double> worths);

}  // namespace moed::cache
