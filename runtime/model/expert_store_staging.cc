// How experts without a slot pass through a device-driven store.
#include <algorithm>
#include <optional>
#include <utility>

#include "runtime/model/expert_store.h"

namespace moed::model {
namespace {

// Layers that use at least this share of their experts have the next layer's read ahead.
constexpr double kShareToReadAhead = 0.875;
// A prompt's rows an expert from which its first layer will use most experts.
constexpr int64_t kRowsToReadAhead = 16;

}  // namespace

void ExpertStore::BeginPrompt(int64_t rows) {
  const auto first = std::find_if(experts_per_layer_.begin(), experts_per_layer_.end(),
                                  [](int experts) { return experts > 0; });
  if (rows < kRowsToReadAhead * *first) return;
  ReadAhead(static_cast<int>(first - experts_per_layer_.begin()));
}

// The layer that will want its experts when `layer` has used `experts`; -1: it may not want most.
int ExpertStore::LayerToReadAhead(int layer, std::span<const int> experts) const {
  if (static_cast<double>(experts.size()) < kShareToReadAhead * experts_per_layer_[layer]) {
    return -1;
  }
  for (int next = layer + 1; next < static_cast<int>(experts_per_layer_.size()); ++next) {
    if (experts_per_layer_[next] > 0) return next;
  }
  return -1;
}

// Takes what was read ahead for experts that have no slot.
absl::Status ExpertStore::TakeAhead(int layer, LayerTraffic* traffic) {
  if (absl::Status status = TakeCompletions(/*wait=*/false, traffic); !status.ok()) return status;
  std::erase_if(demand_.deferred, [&](int expert) {
    const std::optional<StagingSlots::Ahead> ahead = staging_.TakeAhead({layer, expert});
    if (!ahead.has_value()) return false;
    AddStaged({layer, expert}, ahead->slot, ahead->read ? &ready_ : &loading_, traffic);
    return true;
  });
  staging_.DropAhead();
  return absl::OkStatus();
}

// Streams experts that have no slot: device-driven, slots in use are not given up to a prompt.
void ExpertStore::Stage(int layer, LayerTraffic* traffic) {
  while (!demand_.deferred.empty() && staging_.AnyIdle()) {
    const cache::ExpertKey key = {layer, demand_.deferred.back()};
    demand_.deferred.pop_back();
    AddStaged(key, StartStaging(key), &loading_, traffic);
  }
}

void ExpertStore::ReadAhead(int layer) {
  if (layer < 0) return;
  for (int expert = experts_per_layer_[layer] - 1; expert >= 0 && staging_.AnyIdle(); --expert) {
    const cache::ExpertKey key = {layer, expert};
    if (cache_->resident(key) || staging_.IsAhead(key)) continue;
    staging_.AddAhead(key, StartStaging(key));
  }
}

// Returns the slot.
int32_t ExpertStore::StartStaging(cache::ExpertKey key) {
  const StagingSlots::Slot slot = staging_.Take();
  loader_.Start(key, slot.id, Slot(slot.id), slot.after);
  return slot.id;
}

void ExpertStore::AddStaged(cache::ExpertKey key, int32_t slot, std::vector<cache::Grant>* grants,
                            LayerTraffic* traffic) {
  cache::Grant grant;
  grant.key = key;
  grant.slot = slot;
  grants->push_back(std::move(grant));
  traffic->misses.push_back(key.expert);
  cache_->CountMisses(key.layer, 1);
}

}  // namespace moed::model
