// moed.v1.Admin: changes to the expert cache while it serves. Each call is carried out by the
// engine thread between two steps; nothing here waits. Callback API, on a server of its own.
#pragma once

#include <functional>

#include "absl/status/status.h"
#include "proto/moed/v1/admin.grpc.pb.h"
#include "server/model_slot.h"

namespace moed::server {

class AdminService final : public v1::Admin::CallbackService {
 public:
  explicit AdminService(const ModelSlot* slot) : slot_(*slot) {}

  grpc::ServerUnaryReactor* SetBudget(grpc::CallbackServerContext* context,
                                      const v1::SetBudgetRequest* request,
                                      v1::SetBudgetResponse* response) override;
  grpc::ServerUnaryReactor* PinExperts(grpc::CallbackServerContext* context,
                                       const v1::PinExpertsRequest* request,
                                       v1::PinExpertsResponse* response) override;
  grpc::ServerUnaryReactor* UnpinExperts(grpc::CallbackServerContext* context,
                                         const v1::UnpinExpertsRequest* request,
                                         v1::UnpinExpertsResponse* response) override;
  grpc::ServerUnaryReactor* SaveHotSet(grpc::CallbackServerContext* context,
                                       const v1::SaveHotSetRequest* request,
                                       v1::SaveHotSetResponse* response) override;
  grpc::ServerUnaryReactor* ResetStats(grpc::CallbackServerContext* context,
                                       const v1::ResetStatsRequest* request,
                                       v1::ResetStatsResponse* response) override;

 private:
  // Answers the call with what `change` returns on the engine thread.
  grpc::ServerUnaryReactor* OnEngine(grpc::CallbackServerContext* context,
                                     std::function<absl::Status(model::ModelRunner&)> change);

  const ModelSlot& slot_;
};

}  // namespace moed::server
