#include "server/admin_service.h"

#include <spdlog/spdlog.h>

#include <utility>
#include <vector>

#include "server/finish_unary.h"
#include "server/grpc_status.h"
#include "server/hot_set_keeper.h"

namespace moed::server {
namespace {

std::vector<cache::ExpertKey> Keys(const google::protobuf::RepeatedPtrField<v1::ExpertId>& ids) {
  std::vector<cache::ExpertKey> keys;
  for (const v1::ExpertId& id : ids) keys.push_back({id.layer(), id.expert()});
  return keys;
}

}  // namespace

grpc::ServerUnaryReactor* AdminService::OnEngine(
    grpc::CallbackServerContext* context, std::function<absl::Status(model::ModelRunner&)> change) {
  const auto serving = slot_.Require();
  if (!serving.ok()) return FinishUnary(context, serving.status());
  const ServedModel& model = *(*serving)->model;
  if (model.expert_runner == nullptr) {
    return FinishUnary(context, absl::UnimplementedError("what serves here has no expert cache"));
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  model.engine->Post([context, reactor, runner = model.expert_runner, change = std::move(change)] {
    reactor->Finish(ToGrpcStatus(change(*runner), *context));
  });
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::SetBudget(grpc::CallbackServerContext* context,
                                                  const v1::SetBudgetRequest* request,
                                                  v1::SetBudgetResponse* response) {
  return OnEngine(context, [request, response](model::ModelRunner& runner) {
    const absl::StatusOr<int> slots = runner.SetExpertBudget(request->budget());
    if (!slots.ok()) return slots.status();
    spdlog::info("expert budget set to {}: {} slots", request->budget(), *slots);
    response->set_slots(*slots);
    response->set_budget_bytes(*slots * static_cast<int64_t>(runner.expert_format().blob_bytes()));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* AdminService::PinExperts(grpc::CallbackServerContext* context,
                                                   const v1::PinExpertsRequest* request,
                                                   v1::PinExpertsResponse* /*response*/) {
  return OnEngine(context, [request](model::ModelRunner& runner) {
    return runner.PinExperts(Keys(request->experts()));
  });
}

grpc::ServerUnaryReactor* AdminService::UnpinExperts(grpc::CallbackServerContext* context,
                                                     const v1::UnpinExpertsRequest* request,
                                                     v1::UnpinExpertsResponse* /*response*/) {
  return OnEngine(context, [request](model::ModelRunner& runner) {
    return runner.UnpinExperts(Keys(request->experts()));
  });
}

grpc::ServerUnaryReactor* AdminService::SaveHotSet(grpc::CallbackServerContext* context,
                                                   const v1::SaveHotSetRequest* /*request*/,
                                                   v1::SaveHotSetResponse* response) {
  const auto serving = slot_.Require();
  if (!serving.ok()) return FinishUnary(context, serving.status());
  HotSetKeeper* keeper = (*serving)->model->hot_set_keeper.get();
  if (keeper == nullptr) {
    return FinishUnary(context, absl::FailedPreconditionError(
                                    "there is no file to save it to; start with --hot-set-file"));
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  keeper->RequestSave([=](const absl::StatusOr<int>& residents) {
    response->set_path(keeper->file().path);
    response->set_residents(residents.value_or(0));
    reactor->Finish(ToGrpcStatus(residents.status(), *context));
  });
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::ResetStats(grpc::CallbackServerContext* context,
                                                   const v1::ResetStatsRequest* /*request*/,
                                                   v1::ResetStatsResponse* /*response*/) {
  return OnEngine(context, [](model::ModelRunner& runner) {
    runner.ResetExpertCounters();
    return absl::OkStatus();
  });
}

}  // namespace moed::server
