#include "cache/policy.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cache/ranked_queue.h"

namespace moed::cache {
namespace {

struct NamedPolicy {
  PolicyKind kind;
  absl::string_view name;
};
constexpr std::array<NamedPolicy, 4> kPolicies = {{
    {PolicyKind::kRecencyFrequency, "recency-frequency"},
    {PolicyKind::kLru, "lru"},
    {PolicyKind::kLfu, "lfu"},
    {PolicyKind::kStatic, "static"},
}};

using LeastWorthy = RankedQueue<Order::kLeastWorthFirst>;
using MostWorthy = RankedQueue<Order::kMostWorthFirst>;

// The residents that the view's layer may take slots from, the least worthy first.
class Victims {
 public:
  Victims(PolicyKind kind, const CacheView& view)
      : view_(view),
        owed_(view.layer_floor[view.layer] - view.layer_resident[view.layer]),
        own_(view.evictable),
        others_(view.evictable) {
    for (size_t i = 0; i < view.evictable.size(); ++i) {
      const ExpertView& expert = view.evictable[i];
      (expert.key.layer == view.layer ? own_ : others_).Add(Worth(kind, expert), i);
    }
    own_.Arrange();
    others_.Arrange();
  }

  // The slot of `victim` goes to a candidate of this worth, or false if none is to be had for it.
  bool Take(double worth, bool only_if_worth_more, int32_t* victim) {
    while (!others_.empty() && AtFloor(others_.expert().key.layer)) others_.Pop();
    if (owed_ > 0 && !others_.empty()) return TakeFromOther(victim);
    if (own_.empty() && others_.empty()) return false;
    const bool own_first = others_.empty() || (!own_.empty() && OwnBeforeOthers());
    const double least = own_first ? own_.worth() : others_.worth();
    if (only_if_worth_more && !WorthMoreThanByChance(worth, least, view_.uses_per_heat)) {
      return false;
    }
    if (!own_first) return TakeFromOther(victim);
    *victim = own_.index();
    own_.Pop();
    return true;
  }
  void AdmittedToFreeSlot() { --owed_; }

 private:
  // Only the view's layer grows, so what is at its floor stays there.
  bool AtFloor(int layer) const {
    return view_.layer_resident[layer] - std::count(gave_.begin(), gave_.end(), layer) <=
           view_.layer_floor[layer];
  }

  bool OwnBeforeOthers() const {
    if (own_.worth() != others_.worth()) return own_.worth() < others_.worth();
    return TieLess(own_.expert(), others_.expert());
  }

  bool TakeFromOther(int32_t* victim) {
    *victim = others_.index();
    gave_.push_back(others_.expert().key.layer);
    --owed_;
    others_.Pop();
    return true;
  }

  const CacheView& view_;
  int32_t owed_;                          // slots that the view's layer lacks to its floor
  absl::InlinedVector<int32_t, 8> gave_;  // the layer of each slot taken from another
  LeastWorthy own_;
  LeastWorthy others_;
};

}  // namespace

absl::StatusOr<PolicyKind> ParsePolicy(absl::string_view name) {
  std::string known;
  for (const NamedPolicy& policy : kPolicies) {
    if (policy.name == name) return policy.kind;
    absl::StrAppend(&known, known.empty() ? "" : ", ", policy.name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown expert policy '", name, "'; choose one of: ", known));
}

absl::string_view PolicyName(PolicyKind kind) {
  for (const NamedPolicy& policy : kPolicies) {
    if (policy.kind == kind) return policy.name;
  }
  return "unknown";
}

void Worths(PolicyKind kind, const ExpertRows& experts, std::span<double> worths) {
  switch (kind) {
    case PolicyKind::kRecencyFrequency:
      for (size_t i = 0; i < worths.size(); ++i) {
        worths[i] = experts.heat[i] + experts.recent_heat[i];
      }
      break;
    case PolicyKind::kLru:
      for (size_t i = 0; i < worths.size(); ++i) {
        worths[i] = static_cast<double>(experts.last_use_step[i]);
      }
      break;
    case PolicyKind::kLfu:
      std::copy(experts.heat.begin(), experts.heat.end(), worths.begin());
      break;
    case PolicyKind::kStatic:
      std::fill(worths.begin(), worths.end(), 0.0);
      break;
  }
  for (size_t i = 0; i < experts.keep.size(); ++i) {
    if (experts.keep[i] != 0) worths[i] = std::numeric_limits<double>::infinity();
  }
}

bool AdmitsOnlyWorthMore(PolicyKind kind) {
  return kind == PolicyKind::kRecencyFrequency || kind == PolicyKind::kStatic;
}

bool WorthMoreThanByChance(double miss, double resident, double uses_per_heat) {
  if (!(miss > resident) || std::isinf(miss) || uses_per_heat <= 0) return miss > resident;
  return miss - resident > std::sqrt((miss + resident) / (2 * uses_per_heat));
}

double HalfLifeSteps(PolicyKind kind) { return kind == PolicyKind::kLfu ? 1024 : 32; }

Plan MakePlan(PolicyKind kind, const CacheView& view) {
  const bool only_if_worth_more = AdmitsOnlyWorthMore(kind);
  MostWorthy candidates(view.candidates);
  for (size_t i = 0; i < view.candidates.size(); ++i) {
    candidates.Add(Worth(kind, view.candidates[i]), i);
  }
  candidates.Arrange();
  Victims victims(kind, view);
  Plan plan;
  for (int free_slots = view.free_slots; !candidates.empty(); candidates.Pop()) {
    int32_t victim = -1;
    if (free_slots > 0) {
      --free_slots;
      victims.AdmittedToFreeSlot();
    } else if (victims.Take(candidates.worth(), only_if_worth_more, &victim)) {
      plan.evictions.push_back(victim);
    } else {
      break;
    }
    plan.admissions.push_back(candidates.index());
  }
  return plan;
}

}  // namespace moed::cache
