// moed.v1.Experts: what the expert cache does, once or again and again. Callback API; a watcher
// costs one snapshot an interval, and their number is bounded.
#pragma once

#include <atomic>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "proto/moed/v1/experts.grpc.pb.h"
#include "server/model_slot.h"

namespace moed::server {

class ExpertsService final : public v1::Experts::CallbackService {
 public:
  explicit ExpertsService(const ModelSlot* slot) : slot_(*slot), start_(absl::Now()) {}

  grpc::ServerUnaryReactor* GetStats(grpc::CallbackServerContext* context,
                                     const v1::GetExpertStatsRequest* request,
                                     v1::ExpertStats* response) override;
  // INVALID_ARGUMENT: more budgets than may be asked for, or one that is none.
  grpc::ServerUnaryReactor* GetBudgetCurve(grpc::CallbackServerContext* context,
                                           const v1::GetBudgetCurveRequest* request,
                                           v1::BudgetCurve* response) override;
  // INVALID_ARGUMENT: interval_seconds out of range; RESOURCE_EXHAUSTED: too many watchers.
  grpc::ServerWriteReactor<v1::ExpertStats>* Watch(grpc::CallbackServerContext* context,
                                                   const v1::WatchExpertsRequest* request) override;

 private:
  void Fill(const ServedModel& model, bool per_expert, v1::ExpertStats* message) const;

  const ModelSlot& slot_;
  const absl::Time start_;
  std::atomic<int> watchers_ = 0;
};

}  // namespace moed::server
