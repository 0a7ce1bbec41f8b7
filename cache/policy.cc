#include "cache/policy.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

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

// What tells policies apart: what an expert is worth, and whether a miss must be worth more than
// its victim to be admitted.
struct Ranking {
  double (*worth)(const ExpertView&);
  bool only_if_worth_more;
};

double ByHeatAndRecency(const ExpertView& expert) { return expert.heat + expert.recent_heat; }
double ByHeat(const ExpertView& expert) { return expert.heat; }
double ByLastUse(const ExpertView& expert) { return static_cast<double>(expert.last_use_step); }
double AllAlike(const ExpertView&) { return 0; }

Ranking RankingOf(PolicyKind kind) {
  switch (kind) {
    case PolicyKind::kRecencyFrequency:
      return {ByHeatAndRecency, true};
    case PolicyKind::kLru:
      return {ByLastUse, false};
    case PolicyKind::kLfu:
      return {ByHeat, false};
    case PolicyKind::kStatic:
      return {AllAlike, true};
  }
  return {ByHeatAndRecency, true};
}

// An expert of the view with what the policy thinks of it.
struct Ranked {
  double worth;
  int64_t last_use_step;
  ExpertKey key;
  int32_t index;  // into the view
};

// Ties go by last use and then by key, so that a plan depends on nothing but the view.
bool WorthLess(const Ranked& a, const Ranked& b) {
  if (a.worth != b.worth) return a.worth < b.worth;
  if (a.last_use_step != b.last_use_step) return a.last_use_step < b.last_use_step;
  return a.key < b.key;
}
bool WorthMore(const Ranked& a, const Ranked& b) { return WorthLess(b, a); }

double WorthBy(const Ranking& ranking, const ExpertView& expert) {
  return expert.keep ? std::numeric_limits<double>::infinity() : ranking.worth(expert);
}

Ranked Rank(const Ranking& ranking, const ExpertView& expert, int32_t index) {
  return {WorthBy(ranking, expert), expert.last_use_step, expert.key, index};
}

// Experts of which only the first few by `kBehind` are ever asked for: a heap, so that a plan that
// changes nothing, the common case, costs one pass.
template <bool (*kBehind)(const Ranked&, const Ranked&)>
class RankedQueue {
 public:
  void Reserve(size_t count) { heap_.reserve(count); }
  void Add(const Ranked& ranked) { heap_.push_back(ranked); }
  void Arrange() { std::make_heap(heap_.begin(), heap_.end(), kBehind); }
  bool empty() const { return heap_.empty(); }
  const Ranked& front() const { return heap_.front(); }
  void Pop() {
    std::pop_heap(heap_.begin(), heap_.end(), kBehind);
    heap_.pop_back();
  }

 private:
  std::vector<Ranked> heap_;
};

// The residents that the view's layer may take slots from, the least worthy first.
class Victims {
 public:
  Victims(const Ranking& ranking, const CacheView& view)
      : view_(view), resident_(view.layer_resident.begin(), view.layer_resident.end()) {
    own_.Reserve(view.evictable.size());
    others_.Reserve(view.evictable.size());
    for (size_t i = 0; i < view.evictable.size(); ++i) {
      const bool own = view.evictable[i].key.layer == view.layer;
      (own ? own_ : others_).Add(Rank(ranking, view.evictable[i], static_cast<int32_t>(i)));
    }
    own_.Arrange();
    others_.Arrange();
  }

  // The slot of `victim` goes to `candidate`, or false if none is to be had for it.
  bool Take(const Ranked& candidate, bool only_if_worth_more, int32_t* victim) {
    while (!others_.empty() && AtFloor(others_.front().key.layer)) others_.Pop();
    const bool owed = resident_[view_.layer] < view_.layer_floor[view_.layer];
    if (owed && !others_.empty()) return TakeFrom(others_, victim);
    if (own_.empty() && others_.empty()) return false;
    const bool own_first =
        others_.empty() || (!own_.empty() && WorthLess(own_.front(), others_.front()));
    auto& queue = own_first ? own_ : others_;
    if (only_if_worth_more && !(candidate.worth > queue.front().worth)) return false;
    return TakeFrom(queue, victim);
  }
  void AdmittedToFreeSlot() { ++resident_[view_.layer]; }

 private:
  // Only the view's layer grows, so what is at its floor stays there.
  bool AtFloor(int layer) const { return resident_[layer] <= view_.layer_floor[layer]; }

  bool TakeFrom(RankedQueue<WorthMore>& queue, int32_t* victim) {
    *victim = queue.front().index;
    --resident_[queue.front().key.layer];
    ++resident_[view_.layer];
    queue.Pop();
    return true;
  }

  const CacheView& view_;
  std::vector<int32_t> resident_;  // [layers], as the plan so far leaves them
  RankedQueue<WorthMore> own_;
  RankedQueue<WorthMore> others_;
};

// Whether no candidate can displace anything: the common case, seen in one pass.
bool ChangesNothing(const Ranking& ranking, const CacheView& view) {
  const bool owed = view.layer_resident[view.layer] < view.layer_floor[view.layer];
  if (view.free_slots > 0 || !ranking.only_if_worth_more || owed) return false;
  double most = -std::numeric_limits<double>::infinity();
  for (const ExpertView& expert : view.candidates) {
    most = std::max(most, WorthBy(ranking, expert));
  }
  return std::all_of(view.evictable.begin(), view.evictable.end(),
                     [&](const ExpertView& expert) { return WorthBy(ranking, expert) >= most; });
}

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

double Worth(PolicyKind kind, const ExpertView& expert) { return WorthBy(RankingOf(kind), expert); }

double HalfLifeSteps(PolicyKind kind) { return kind == PolicyKind::kLfu ? 1024 : 32; }

Plan MakePlan(PolicyKind kind, const CacheView& view) {
  const Ranking ranking = RankingOf(kind);
  if (ChangesNothing(ranking, view)) return {};
  RankedQueue<WorthLess> candidates;
  candidates.Reserve(view.candidates.size());
  for (size_t i = 0; i < view.candidates.size(); ++i) {
    candidates.Add(Rank(ranking, view.candidates[i], static_cast<int32_t>(i)));
  }
  candidates.Arrange();
  Victims victims(ranking, view);
  Plan plan;
  for (int free_slots = view.free_slots; !candidates.empty(); candidates.Pop()) {
    int32_t victim = -1;
    if (free_slots > 0) {
      --free_slots;
      victims.AdmittedToFreeSlot();
    } else if (victims.Take(candidates.front(), ranking.only_if_worth_more, &victim)) {
      plan.evictions.push_back(victim);
    } else {
      break;
    }
    plan.admissions.push_back(candidates.front().index);
  }
  return plan;
}

}  // namespace moed::cache
