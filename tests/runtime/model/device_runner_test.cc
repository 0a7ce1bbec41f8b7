// A model runner whose experts a device finds by itself: the host follows each step beside the next
// one. The CPU stands in for the device.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/model/model_runner.h"
#include "tests/golden/golden_case.h"
#include "tests/runtime/model/greedy_tokens.h"
#include "tests/runtime/model/host_as_device.h"
#include "tests/runtime/model/test_model.h"

namespace moed::model {
namespace {

constexpr int kSteps = 12;

class DeviceRunnerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto checkpoint = OpenCheckpoint(
        {.directory = testing::LoadGoldenCase("qwen3_moe_sharded_untied")->checkpoint_directory});
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    auto runner =
        ModelRunner::Create({.memory_limit_bytes = int64_t{512} << 20,
                             .expert_budget = "50%",
                             .max_num_seqs = 4,
                             .max_num_batched_tokens = 64,
                             .max_model_len = 128,
                             .kv_cache_bytes = int64_t{16} << 20,
                             .io_threads = 2,
                             .record_routing = [this](const std::string&) { ++recorded_; }},
                            *std::move(checkpoint), std::make_unique<testing::HostAsDevice>(2));
    ASSERT_TRUE(runner.ok()) << runner.status();
    runner_ = *std::move(runner);
    ASSERT_NE(runner_->cold_path(), "page");
    recorded_ = 0;
  }

  void Generate(int steps) { testing::GreedyTokens(*runner_, {5, 9, 77, 3, 120}, steps); }
  int64_t StepsSeen() const { return runner_->Snapshot()->cache.steps_total; }
  int64_t UsesSeen() const {
    int64_t uses = 0;
    for (const cache::LayerStats& layer : runner_->Snapshot()->cache.layers) {
      uses += layer.hits_total + layer.misses_total;
    }
    return uses;
  }

  std::unique_ptr<ModelRunner> runner_;
  int recorded_ = 0;
};

TEST_F(DeviceRunnerTest, FollowsAStepBesideTheNextAndTheLastWhenSettled) {
  Generate(kSteps);
  EXPECT_EQ(StepsSeen(), kSteps - 1);
  EXPECT_EQ(recorded_, kSteps - 1);
  ASSERT_TRUE(runner_->Settle().ok());
  EXPECT_EQ(StepsSeen(), kSteps);
  EXPECT_EQ(recorded_, kSteps);
  const int64_t uses = UsesSeen();
  ASSERT_TRUE(runner_->Settle().ok());
  EXPECT_EQ(StepsSeen(), kSteps) << "a step was followed twice";
  EXPECT_EQ(recorded_, kSteps);
  EXPECT_EQ(UsesSeen(), uses);
}

TEST_F(DeviceRunnerTest, SharesOfExpertTrafficAddUpToWhatTheCacheCountsALittleLater) {
  const std::vector<int32_t> blocks = {0, 1, 2, 3};
  double hits = 0, misses = 0;
  for (int step = 0; step < kSteps; ++step) {
    StepInput input;
    for (int sequence = 0; sequence < 4; ++sequence) {
      input.token_ids.push_back((step * 31 + sequence * 7) % 256);
      input.chunks.push_back(
          {.num_tokens = 1, .kv_blocks = std::span(blocks).subspan(sequence, 1)});
    }
    StepResult result;
    ASSERT_TRUE(runner_->Run(input, &result).ok());
    for (const ChunkResult& chunk : result.chunks) {
      hits += chunk.experts.hits;
      misses += chunk.experts.misses;
    }
  }
  ASSERT_TRUE(runner_->Settle().ok());
  int64_t hits_total = 0, misses_total = 0;
  for (const cache::LayerStats& layer : runner_->Snapshot()->cache.layers) {
    hits_total += layer.hits_total;
    misses_total += layer.misses_total;
  }
  EXPECT_GT(misses_total, 0);
  EXPECT_NEAR(hits, static_cast<double>(hits_total), 1e-6);
  EXPECT_NEAR(misses, static_cast<double>(misses_total), 1e-6);
}

TEST_F(DeviceRunnerTest, WhatAnOperatorChangesReachesTheDeviceWithinTwoSteps) {
  Generate(kSteps);
  ASSERT_TRUE(runner_->Settle().ok());
  ASSERT_TRUE(runner_->SetExpertBudget("0slots").ok());
  Generate(2);
  ASSERT_TRUE(runner_->Settle().ok());
  runner_->ResetExpertCounters();
  Generate(1);
  ASSERT_TRUE(runner_->Settle().ok());
  for (const cache::LayerStats& layer : runner_->Snapshot()->cache.layers) {
    EXPECT_EQ(layer.hits_total, 0);
    EXPECT_EQ(layer.resident, 0);
  }
}

TEST(FollowingTest, AStepIsIssuedBeforeTheCacheFollowsTheOneAhead) {
  const auto created = testing::TestModel::Create(
      {.directory = testing::LoadGoldenCase("qwen3_moe_sharded_untied")->checkpoint_directory,
       .device_tokens = 16});
  ASSERT_TRUE(created.ok()) << created.status();
  testing::TestModel& model = **created;
  if (model.experts().device() == nullptr) GTEST_SKIP() << "the device takes no such experts";
  const std::vector<int32_t> blocks = {0};
  const StepInput input = {.token_ids = {5}, .chunks = {{.num_tokens = 1, .kv_blocks = blocks}}};
  std::vector<ExpertShare> shares;
  const auto followed = [&] { return model.experts().cache().Stats().steps_total; };
  ASSERT_TRUE(model.transformer().Forward(input).ok());
  ASSERT_TRUE(model.transformer().EndStep(&shares).ok());
  ASSERT_TRUE(model.transformer().Forward(input).ok());
  EXPECT_EQ(followed(), 0) << "between two steps, while a device waits";
  ASSERT_TRUE(model.transformer().FollowLastStep().ok());
  EXPECT_EQ(followed(), 1);
  ASSERT_TRUE(model.transformer().EndStep(&shares).ok());
  ASSERT_TRUE(model.transformer().Forward(input).ok());
  ASSERT_TRUE(model.transformer().EndStep(&shares).ok());
  EXPECT_EQ(followed(), 2) << "nobody asked for it meanwhile";
}

}  // namespace
}  // namespace moed::model
