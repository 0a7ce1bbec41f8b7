#include "runtime/model/memory_plan.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_format.h"

namespace moed::model {
namespace {

constexpr int64_t kTokensPerSequence = 2048;
constexpr int64_t kTokensOfOneSequence = 8192;
// Code, tokenizer, connections, thread stacks.
constexpr int64_t kProcessBytes = int64_t{128} << 20;

std::string Mebibytes(int64_t bytes) {
  return absl::StrFormat("%.0f MiB", static_cast<double>(bytes) / (1 << 20));
}

int64_t BlocksOf(int64_t tokens, const MemoryRequest& request) {
  return (tokens + request.kv_block_tokens - 1) / request.kv_block_tokens;
}

int64_t AutoKvBytes(const MemoryRequest& request, int64_t left_bytes) {
  const int64_t sequence_tokens = std::min(request.max_model_len, kTokensPerSequence);
  const int64_t blocks =
      std::max(request.max_num_seqs * BlocksOf(sequence_tokens, request),
               BlocksOf(std::min(request.max_model_len, kTokensOfOneSequence), request));
  const int64_t beside_all_experts = left_bytes - request.num_experts * request.expert_bytes;
  return std::min(blocks * request.kv_block_bytes, std::max(left_bytes / 4, beside_all_experts));
}

}  // namespace

std::string MemoryPlan::Describe() const {
  return absl::StrFormat(
      "dense weights %s, activations %s, KV cache %s (%d blocks), expert slots %s (%d)",
      Mebibytes(dense_bytes), Mebibytes(activation_bytes), Mebibytes(kv_cache_bytes), num_kv_blocks,
      Mebibytes(expert_slot_bytes), num_expert_slots);
}

absl::StatusOr<MemoryPlan> PlanMemory(const MemoryRequest& request) {
  const int64_t left_bytes =
      request.limit_bytes - kProcessBytes - request.dense_bytes - request.activation_bytes;
  const int64_t kv_bytes =
      request.kv_cache_bytes > 0 ? request.kv_cache_bytes : AutoKvBytes(request, left_bytes);
  const int64_t blocks = std::min<int64_t>(std::max<int64_t>(kv_bytes, 0) / request.kv_block_bytes,
                                           std::numeric_limits<int>::max());
  if (left_bytes < kv_bytes || blocks == 0) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "the model does not fit: dense weights take %s, activations %s, the process %s, the KV "
        "cache %s (at least %s), and %s may be taken; raise the memory limit (of a GPU "
        "--gpu-memory-utilization) or lower --kv-cache-memory, --max-num-batched-tokens or "
        "--max-num-seqs",
        Mebibytes(request.dense_bytes), Mebibytes(request.activation_bytes),
        Mebibytes(kProcessBytes), Mebibytes(std::max<int64_t>(kv_bytes, 0)),
        Mebibytes(request.kv_block_bytes), Mebibytes(request.limit_bytes)));
  }
  const absl::StatusOr<int> slots = ResolveExpertSlots(
      request.expert_budget, {.num_experts = request.num_experts,
                              .expert_bytes = request.expert_bytes,
                              .top_k = request.min_slots,
                              .available_bytes = left_bytes - blocks * request.kv_block_bytes});
  if (!slots.ok()) return slots.status();
  return MemoryPlan{
      .dense_bytes = request.dense_bytes,
      .activation_bytes = request.activation_bytes,
      .kv_cache_bytes = blocks * request.kv_block_bytes,
      .num_kv_blocks = static_cast<int>(blocks),
      .expert_slot_bytes = *slots * request.expert_bytes,
      .num_expert_slots = *slots,
      .max_model_len = std::min(request.max_model_len, blocks * request.kv_block_tokens)};
}

}  // namespace moed::model
