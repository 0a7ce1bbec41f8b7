#include "cache/policy.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>

#include "absl/container/inlined_vector.h"
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
struct WorthLess {
  bool operator()(const Ranked& a, const Ranked& b) const {
    if (a.worth != b.worth) return a.worth < b.worth;
    if (a.last_use_step != b.last_use_step) return a.last_use_step < b.last_use_step;
    return a.key < b.key;
  }
};
struct WorthMore {
  bool operator()(const Ranked& a, const Ranked& b) const { return WorthLess()(b, a); }
};

double WorthBy(const Ranking& ranking, const ExpertView& expert) {
  return expert.keep ? std::numeric_limits<double>::infinity() : ranking.worth(expert);
}

// Experts of which mostly the first few by `Before` are asked for, out of a few: looked for one
// after the other. Of many all may be asked for: sorted.
template <typename Before>
class RankedQueue {
 public:
  void Add(double worth, const ExpertView& expert, size_t index) {
    Ranked& ranked = experts_.emplace_back();
    ranked.worth = worth;
    ranked.last_use_step = expert.last_use_step;
    ranked.key = expert.key;
    ranked.index = static_cast<int32_t>(index);
  }
  void Arrange() {
    sorted_ = experts_.size() > kFew;
    if (sorted_) {
      std::sort(experts_.begin(), experts_.end(),
                [](const Ranked& a, const Ranked& b) { return Before()(b, a); });
    }
    FindFirst();
  }
  bool empty() const { return experts_.empty(); }
  const Ranked& front() const { return experts_[first_]; }
  void Pop() {
    experts_[first_] = experts_.back();
    experts_.pop_back();
    FindFirst();
  }

 private:
  static constexpr size_t kFew = 32;

  void FindFirst() {
    first_ = experts_.size() - 1;
    for (size_t i = 0; i + 1 < experts_.size() && !sorted_; ++i) {
      if (Before()(experts_[i], experts_[first_])) first_ = i;
    }
  }

  absl::InlinedVector<Ranked, kFew> experts_;
  size_t first_ = 0;
  bool sorted_ = false;
};

// The residents that the view's layer may take slots from, the least worthy first.
class Victims {
 public:
  Victims(const Ranking& ranking, const CacheView& view)
      : view_(view), owed_(view.layer_floor[view.layer] - view.layer_resident[view.layer]) {
    for (size_t i = 0; i < view.evictable.size(); ++i) {
      const ExpertView& expert = view.evictable[i];
      (expert.key.layer == view.layer ? own_ : others_).Add(WorthBy(ranking, expert), expert, i);
    }
    own_.Arrange();
    others_.Arrange();
  }

  // The slot of `victim` goes to `candidate`, or false if none is to be had for it.
  bool Take(const Ranked& candidate, bool only_if_worth_more, int32_t* victim) {
    while (!others_.empty() && AtFloor(others_.front().key.layer)) others_.Pop();
    if (owed_ > 0 && !others_.empty()) return TakeFromOther(victim);
    if (own_.empty() && others_.empty()) return false;
    const bool own_first =
        others_.empty() || (!own_.empty() && WorthLess()(own_.front(), others_.front()));
    const Ranked& first = own_first ? own_.front() : others_.front();
    if (only_if_worth_more && !(candidate.worth > first.worth)) return false;
    if (!own_first) return TakeFromOther(victim);
    *victim = own_.front().index;
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

  bool TakeFromOther(int32_t* victim) {
    *victim = others_.front().index;
    gave_.push_back(others_.front().key.layer);
    --owed_;
    others_.Pop();
    return true;
  }

  const CacheView& view_;
  int32_t owed_;                          // slots that the view's layer lacks to its floor
  absl::InlinedVector<int32_t, 8> gave_;  // the layer of each slot taken from another
  RankedQueue<WorthLess> own_;
  RankedQueue<WorthLess> others_;
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

double Worth(PolicyKind kind, const ExpertView& expert) { return WorthBy(RankingOf(kind), expert); }

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

bool AdmitsOnlyWorthMore(PolicyKind kind) { return RankingOf(kind).only_if_worth_more; }

double HalfLifeSteps(PolicyKind kind) { return kind == PolicyKind::kLfu ? 1024 : 32; }

Plan MakePlan(PolicyKind kind, const CacheView& view) {
  const Ranking ranking = RankingOf(kind);
  RankedQueue<WorthMore> candidates;
  for (size_t i = 0; i < view.candidates.size(); ++i) {
    candidates.Add(WorthBy(ranking, view.candidates[i]), view.candidates[i], i);
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
