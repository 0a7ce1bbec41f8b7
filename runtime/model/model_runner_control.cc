// The side of ModelRunner that operators use: budget, pins, counters.
#include "runtime/model/expert_budget.h"
#include "runtime/model/model_runner.h"

namespace moed::model {

absl::StatusOr<int> ModelRunner::SetExpertBudget(std::string_view budget) {
  const absl::StatusOr<ExpertBudget> parsed = ParseExpertBudget(budget);
  if (!parsed.ok()) return parsed.status();
  const absl::StatusOr<int> slots = ResolveSlotsTaken(*parsed);
  if (!slots.ok()) return slots.status();
  if (absl::Status status = CheckSlots(*slots); !status.ok()) return status;
  if (absl::Status status = experts_->cache().SetBudget(*slots); !status.ok()) return status;
  PublishSnapshot();
  return *slots;
}

absl::StatusOr<int> ModelRunner::ResolveSlotsTaken(const ExpertBudget& budget) const {
  return ResolveExpertSlots(budget,
                            {.num_experts = size_.num_experts,
                             .expert_bytes = static_cast<int64_t>(expert_format().blob_bytes()),
                             .top_k = device_driven() ? 0 : config().router.top_k,
                             .available_bytes = plan_.expert_slot_bytes});
}

absl::Status ModelRunner::PinExperts(std::span<const cache::ExpertKey> keys) {
  cache::ExpertCache& cache = experts_->cache();
  absl::Status status;
  std::vector<cache::ExpertKey> pinned;  // by this call
  for (cache::ExpertKey key : keys) {
    const bool was_pinned = cache.pinned(key);
    status = cache.PinExpert(key);
    if (!status.ok()) break;
    if (!was_pinned) pinned.push_back(key);
  }
  if (!status.ok()) {
    for (cache::ExpertKey key : pinned) cache.UnpinExpert(key).IgnoreError();
  }
  PublishSnapshot();
  return status;
}

absl::Status ModelRunner::UnpinExperts(std::span<const cache::ExpertKey> keys) {
  cache::ExpertCache& cache = experts_->cache();
  for (cache::ExpertKey key : keys) {
    if (absl::Status status = cache.CheckExpert(key); !status.ok()) return status;
  }
  for (cache::ExpertKey key : keys) cache.UnpinExpert(key).IgnoreError();
  PublishSnapshot();
  return absl::OkStatus();
}

void ModelRunner::ResetExpertCounters() {
  experts_->cache().ResetCounters();
  PublishSnapshot();
}

}  // namespace moed::model
