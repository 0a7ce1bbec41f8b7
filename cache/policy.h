// Which experts deserve a slot: pure functions of a snapshot, without clock, I/O or state. The
// drivers build the view, ask Plan, and carry the answer out.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cache/expert_key.h"

namespace moed::cache {

enum class PolicyKind : uint8_t {
  kRecencyFrequency,  // evicts the coldest, and only for something hotter: the default
  kLru,               // evicts what was used longest ago, always admits
  kLfu,               // evicts the coldest by a slowly decaying count, always admits
  kStatic,            // fills free slots, evicts nothing
};

// INVALID_ARGUMENT, listing the names, for anything but: recency-frequency, lru, lfu, static.
absl::StatusOr<PolicyKind> ParsePolicy(std::string_view name);
std::string_view PolicyName(PolicyKind kind);

// Half-life of the decayed frequency that a policy ranks by, in steps.
double HalfLifeSteps(PolicyKind kind);

// One expert as a policy sees it.
struct ExpertView {
  ExpertKey key;
  int64_t last_use_step = -1;  // -1: never
  double heat = 0;             // decayed frequency, any common scale; see RoutingStats
};

struct CacheView {
  // Misses that ask for a slot, of any layers; in order of rising preference nothing is implied.
  std::span<const ExpertView> candidates;
  // Residents that may be evicted: unpinned, of any layers.
  std::span<const ExpertView> evictable;
  // Slots that may be taken without evicting anything.
  int free_slots = 0;
  // [layers]: experts resident now, and the slots that no other layer may take from this one.
  std::span<const int32_t> layer_resident;
  std::span<const int32_t> layer_floor;
};

// Indices into the view. The plan is legal: evictions.size() + free_slots >= admissions.size(), and
// no layer falls below min(its floor, its residents before) except in favour of itself.
struct Plan {
  std::vector<int32_t> admissions;  // into candidates
  std::vector<int32_t> evictions;   // into evictable
};

Plan MakePlan(PolicyKind kind, const CacheView& view);

}  // namespace moed::cache
