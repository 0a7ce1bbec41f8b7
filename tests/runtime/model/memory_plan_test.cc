#include "runtime/model/memory_plan.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moed::model {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kMiB = 1 << 20;

// Block of 1 MiB for 16 tokens; 100 experts of 10 MiB; 128 MiB are kept for the process.
MemoryRequest Request() {
  return {.limit_bytes = 4096 * kMiB,
          .dense_bytes = 500 * kMiB,
          .activation_bytes = 100 * kMiB,
          .kv_block_bytes = kMiB,
          .kv_block_tokens = 16,
          .max_num_seqs = 4,
          .max_model_len = 4096,
          .num_experts = 100,
          .expert_bytes = 10 * kMiB,
          .min_slots = 4};
}

TEST(MemoryPlanTest, GivesAllExpertsAndTheStatedKvLengthIfTheyFit) {
  const auto plan = PlanMemory(Request());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->num_kv_blocks, 4 * 2048 / 16);
  EXPECT_EQ(plan->kv_cache_bytes, 512 * kMiB);
  EXPECT_EQ(plan->num_expert_slots, 100);
  EXPECT_EQ(plan->expert_slot_bytes, 1000 * kMiB);
  EXPECT_EQ(plan->max_model_len, 4096);
  EXPECT_THAT(plan->Describe(), HasSubstr("KV cache 512 MiB (512 blocks)"));
}

TEST(MemoryPlanTest, GivesOneSequenceAtLeast8192Tokens) {
  MemoryRequest request = Request();
  request.max_num_seqs = 1;
  request.max_model_len = 100000;
  const auto plan = PlanMemory(request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->num_kv_blocks, 512);
  EXPECT_EQ(plan->max_model_len, 8192);
}

TEST(MemoryPlanTest, LeavesThreeQuartersToExpertsThatDoNotAllFit) {
  MemoryRequest request = Request();
  request.limit_bytes = 1128 * kMiB;  // 400 MiB are left
  const auto plan = PlanMemory(request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->num_kv_blocks, 100);
  EXPECT_EQ(plan->num_expert_slots, 30);
  EXPECT_EQ(plan->max_model_len, 1600);
}

TEST(MemoryPlanTest, KeepsAnExplicitKvCache) {
  MemoryRequest request = Request();
  request.kv_cache_bytes = 10 * kMiB + 5;
  const auto plan = PlanMemory(request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->num_kv_blocks, 10);
  EXPECT_EQ(plan->max_model_len, 160);
}

TEST(MemoryPlanTest, RefusesWhatDoesNotFitWithTheNumbers) {
  MemoryRequest dense = Request();
  dense.limit_bytes = 600 * kMiB;
  MemoryRequest kv = Request();
  kv.kv_cache_bytes = 4000 * kMiB;
  MemoryRequest tiny_kv = Request();
  tiny_kv.kv_cache_bytes = 1;
  for (const MemoryRequest& request : {dense, kv, tiny_kv}) {
    const auto plan = PlanMemory(request);
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(plan.status().message()), HasSubstr("dense weights take 500 MiB"));
  }
  MemoryRequest experts = Request();
  experts.limit_bytes = 768 * kMiB;  // 40 MiB are left, 30 after the KV cache: three experts
  EXPECT_THAT(std::string(PlanMemory(experts).status().message()), HasSubstr("4slots"));
}

}  // namespace
}  // namespace moed::model
