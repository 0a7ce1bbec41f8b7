// How a memory limit is divided among dense weights, activations, KV cache and expert slots, before
// anything is taken. Pure functions.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/model/expert_budget.h"

namespace moed::model {

struct MemoryRequest {
  int64_t limit_bytes = 0;  // for everything below
  int64_t dense_bytes = 0;
  int64_t activation_bytes = 0;
  int64_t kv_block_bytes = 0;
  int kv_block_tokens = 0;
  int64_t kv_cache_bytes = 0;  // 0: auto
  int max_num_seqs = 0;
  int64_t max_model_len = 0;
  int64_t num_experts = 0;  // of all layers
  int64_t expert_bytes = 0;
  int min_slots =
      0;  // top-k if layers are computed from slots alone, 0 with experts in host memory
  ExpertBudget expert_budget = {};
};

struct MemoryPlan {
  int64_t dense_bytes = 0;
  int64_t activation_bytes = 0;
  int64_t kv_cache_bytes = 0;
  int num_kv_blocks = 0;
  int64_t expert_slot_bytes = 0;  // of all slots
  int num_expert_slots = 0;
  int64_t max_model_len = 0;  // cut to what the KV cache holds

  // "dense 1.2 GiB, activations 90 MiB, KV cache ..., for the log.
  std::string Describe() const;
};

// An automatic KV cache has room for max_num_seqs sequences of 2048 tokens, and for one of 8192 or
// of max_model_len if that is less; but if not all experts then fit, at most a quarter of what
// dense weights and activations leave. Experts get the rest, as far as their budget goes.
// RESOURCE_EXHAUSTED, with the numbers, if something does not fit.
absl::StatusOr<MemoryPlan> PlanMemory(const MemoryRequest& request);

}  // namespace moed::model
