#include "server/experts_service.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/budget_curve.h"
#include "server/finish_unary.h"
#include "server/grpc_status.h"
#include "server/refused_stream.h"
#include "server/translate_response.h"
#include "server/watch_reactor.h"

namespace moed::server {
namespace {

constexpr double kMinIntervalSeconds = 0.1;
constexpr double kMaxIntervalSeconds = 60;
constexpr int kMaxWatchers = 64;
constexpr int kMaxBudgets = 4096;

absl::Status CheckBudgets(const v1::GetBudgetCurveRequest& request) {
  if (request.slots_size() > kMaxBudgets) {
    return InvalidField("slots", absl::StrCat("has ", request.slots_size(), " budgets; at most ",
                                              kMaxBudgets, " may be asked for"));
  }
  for (int i = 0; i < request.slots_size(); ++i) {
    if (request.slots(i) >= 0) continue;
    return InvalidField(absl::StrCat("slots[", i, "]"), "is negative");
  }
  return absl::OkStatus();
}

}  // namespace

void ExpertsService::Fill(const ServedModel& served, bool per_expert,
                          v1::ExpertStats* message) const {
  const std::shared_ptr<const model::ExpertSnapshot> experts = served.experts();
  FillExpertStats(served, *experts, per_expert, message);
  FillServingStats(served.engine->Snapshot(), absl::ToDoubleSeconds(absl::Now() - start_),
                   message->mutable_serving());
}

grpc::ServerUnaryReactor* ExpertsService::GetStats(grpc::CallbackServerContext* context,
                                                   const v1::GetExpertStatsRequest* request,
                                                   v1::ExpertStats* response) {
  const auto serving = slot_.Require();
  if (serving.ok()) Fill(*(*serving)->model, request->per_expert(), response);
  return FinishUnary(context, serving.status());
}

grpc::ServerUnaryReactor* ExpertsService::GetBudgetCurve(grpc::CallbackServerContext* context,
                                                         const v1::GetBudgetCurveRequest* request,
                                                         v1::BudgetCurve* response) {
  const auto serving = slot_.Require();
  absl::Status status = serving.status();
  status.Update(CheckBudgets(*request));
  if (status.ok()) {
    const ServedModel& model = *(*serving)->model;
    FillBudgetCurve(model.description, *model.experts(), *request, response);
  }
  return FinishUnary(context, status);
}

grpc::ServerWriteReactor<v1::ExpertStats>* ExpertsService::Watch(
    grpc::CallbackServerContext* context, const v1::WatchExpertsRequest* request) {
  const auto serving = slot_.Require();
  if (!serving.ok()) return RefusedStream<v1::ExpertStats>::Start(context, serving.status());
  const double interval = request->has_interval_seconds() ? request->interval_seconds() : 1;
  // Written so that NaN fails.
  if (!(interval >= kMinIntervalSeconds && interval <= kMaxIntervalSeconds)) {
    return RefusedStream<v1::ExpertStats>::Start(
        context, InvalidField("interval_seconds",
                              absl::StrCat("is ", interval, "; it must be from ",
                                           kMinIntervalSeconds, " to ", kMaxIntervalSeconds)));
  }
  if (watchers_.fetch_add(1) >= kMaxWatchers) {
    watchers_.fetch_sub(1);
    return RefusedStream<v1::ExpertStats>::Start(
        context, WithRetryDelay(absl::ResourceExhaustedError(
                                    absl::StrCat(kMaxWatchers, " calls watch already")),
                                absl::Seconds(10)));
  }
  const ServedModel& model = *(*serving)->model;
  return WatchReactor::Start(
      absl::Seconds(interval),
      [this, &model, per_expert = request->per_expert()](v1::ExpertStats* message) {
        Fill(model, per_expert, message);
      },
      [this] { watchers_.fetch_sub(1); });
}

}  // namespace moed::server
