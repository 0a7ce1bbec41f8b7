// Changing the expert cache of a serving daemon: budget, pins, counters, hot set.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/moed/v1/admin.grpc.pb.h"
#include "server/model_host.h"
#include "tests/integration/test_server.h"

namespace moed::server {
namespace {

using grpc::StatusCode;

constexpr int kTopK = 4;
constexpr int kTotalExperts = 6 * 32;

Options DemoOptions() {
  Options options;
  options.model = MOED_DEMO_MODEL;
  options.cpu_threads = 1;
  options.kv_cache_bytes = 64 << 20;
  options.expert_budget = "50%";
  options.max_expert_budget = "100%";
  return options;
}

class AdminTest : public testing::Test {
 protected:
  AdminTest() : server_(DemoOptions(), LoadModel) { server_.WaitUntilLoaded(); }

  grpc::Status SetBudget(const std::string& budget, v1::SetBudgetResponse* response) {
    grpc::ClientContext context;
    v1::SetBudgetRequest request;
    request.set_budget(budget);
    return server_.admin().SetBudget(&context, request, response);
  }

  v1::ExpertStats Stats() {
    grpc::ClientContext context;
    v1::GetExpertStatsRequest request;
    request.set_per_expert(true);
    v1::ExpertStats stats;
    EXPECT_TRUE(server_.experts().GetStats(&context, request, &stats).ok());
    return stats;
  }

  TestServer server_;
};

TEST_F(AdminTest, BudgetGrowsAndShrinksWhileTokensStayEqual) {
  const v1::GenerateRequest request = TokensRequest(40, 150);
  const std::vector<int32_t> expected = Generate(server_.inference(), request).tokens;
  std::atomic<bool> done = false;
  std::thread operator_thread([&] {
    for (int i = 0; !done; ++i) {
      const int slots = kTopK + i * 37 % (kTotalExperts - kTopK);
      v1::SetBudgetResponse response;
      EXPECT_TRUE(SetBudget(absl::StrCat(slots, "slots"), &response).ok());
      EXPECT_EQ(response.slots(), slots);
    }
  });
  for (int i = 0; i < 4; ++i) {
    const StreamOutcome outcome = Generate(server_.inference(), request);
    EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
    EXPECT_EQ(outcome.tokens, expected);
  }
  done = true;
  operator_thread.join();
}

TEST_F(AdminTest, ABudgetCutsTheResidents) {
  v1::SetBudgetResponse response;
  ASSERT_TRUE(SetBudget("10%", &response).ok());
  const v1::ExpertStats stats = Stats();
  EXPECT_EQ(stats.slots(), response.slots());
  int resident = 0;
  for (const v1::LayerStats& layer : stats.layers()) resident += layer.resident();
  EXPECT_LE(resident, response.slots());
  ASSERT_TRUE(SetBudget("auto", &response).ok());
  EXPECT_EQ(response.slots(), kTotalExperts);
  EXPECT_EQ(Stats().max_slots(), kTotalExperts);
}

TEST_F(AdminTest, BudgetsThatCannotBeAreRefused) {
  v1::SetBudgetResponse response;
  EXPECT_EQ(SetBudget("lots", &response).error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(SetBudget("1slots", &response).error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Stats().slots(), kTotalExperts / 2);
}

TEST_F(AdminTest, PinnedExpertsStayUntilUnpinned) {
  v1::PinExpertsRequest pin;
  const int expert = 7;
  pin.add_experts()->set_expert(expert);
  {
    grpc::ClientContext context;
    v1::PinExpertsResponse response;
    ASSERT_TRUE(server_.admin().PinExperts(&context, pin, &response).ok());
  }
  Generate(server_.inference(), TokensRequest(200, 50));
  ASSERT_GT(Stats().layers(0).expert_tokens_total(expert), 0);
  v1::SetBudgetResponse response;
  ASSERT_TRUE(SetBudget("6slots", &response).ok());
  Generate(server_.inference(), TokensRequest(20, 20));
  EXPECT_TRUE(Stats().layers(0).expert_resident(expert));
}

TEST_F(AdminTest, PinsAreAllOrNone) {
  v1::PinExpertsRequest pin;
  pin.add_experts()->set_expert(3);
  pin.add_experts()->set_layer(99);
  grpc::ClientContext context;
  v1::PinExpertsResponse response;
  EXPECT_EQ(server_.admin().PinExperts(&context, pin, &response).error_code(),
            StatusCode::INVALID_ARGUMENT);
  // A pin would need one slot more than the smallest budget.
  v1::SetBudgetResponse budget;
  EXPECT_TRUE(SetBudget(absl::StrCat(kTopK, "slots"), &budget).ok());
}

TEST_F(AdminTest, ResetStatsZeroesTheExpertCounters) {
  Generate(server_.inference(), TokensRequest(20, 10));
  EXPECT_GT(Stats().layers(0).tokens_total(), 0);
  grpc::ClientContext context;
  v1::ResetStatsResponse response;
  ASSERT_TRUE(server_.admin().ResetStats(&context, {}, &response).ok());
  EXPECT_EQ(Stats().layers(0).tokens_total(), 0);
}

TEST_F(AdminTest, SavingNeedsAFile) {
  grpc::ClientContext context;
  v1::SaveHotSetResponse response;
  EXPECT_EQ(server_.admin().SaveHotSet(&context, {}, &response).error_code(),
            StatusCode::FAILED_PRECONDITION);
}

TEST_F(AdminTest, TheServingPortHasNoAdminService) {
  const auto stub = v1::Admin::NewStub(server_.NewChannel());
  grpc::ClientContext context;
  v1::ResetStatsResponse response;
  EXPECT_EQ(stub->ResetStats(&context, {}, &response).error_code(), StatusCode::UNIMPLEMENTED);
}

TEST_F(AdminTest, BudgetCurveRisesWithTheBudget) {
  Generate(server_.inference(), TokensRequest(4, 1500));
  grpc::ClientContext context;
  v1::BudgetCurve curve;
  ASSERT_TRUE(server_.experts().GetBudgetCurve(&context, {}, &curve).ok());
  EXPECT_EQ(curve.total_experts(), kTotalExperts);
  EXPECT_EQ(curve.current().slots(), kTotalExperts / 2);
  ASSERT_GT(curve.points_size(), 8);
  for (int i = 1; i < curve.points_size(); ++i) {
    EXPECT_GT(curve.points(i).slots(), curve.points(i - 1).slots());
    EXPECT_GE(curve.points(i).hit_rate(), curve.points(i - 1).hit_rate());
    EXPECT_LE(curve.points(i).bytes_per_token(), curve.points(i - 1).bytes_per_token());
  }
  EXPECT_GT(curve.points(curve.points_size() - 1).hit_rate(), 0.8);
  EXPECT_GT(curve.points(0).bytes_per_token(), 0);
}

TEST_F(AdminTest, BudgetsOfACurveAreChecked) {
  grpc::ClientContext context;
  v1::GetBudgetCurveRequest request;
  request.add_slots(-1);
  v1::BudgetCurve curve;
  EXPECT_EQ(server_.experts().GetBudgetCurve(&context, request, &curve).error_code(),
            StatusCode::INVALID_ARGUMENT);
}

TEST_F(AdminTest, BalanceAddsUpToOneInEveryLayer) {
  Generate(server_.inference(), TokensRequest(100, 100));
  const v1::ExpertStats stats = Stats();
  ASSERT_EQ(stats.balance_size(), 6);
  for (const v1::LayerBalance& balance : stats.balance()) {
    double probability = 0;
    double share = 0;
    for (float p : balance.probability()) probability += p;
    for (float s : balance.token_share()) share += s;
    EXPECT_NEAR(probability, 1, 1e-3);
    EXPECT_NEAR(share, 1, 1e-3);
    EXPECT_GE(balance.imbalance(), 1);
    EXPECT_GE(balance.auxiliary_loss(), 0);
  }
}

}  // namespace
}  // namespace moed::server
