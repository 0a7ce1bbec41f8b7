#include "runtime/model/runner_memory.h"

#include <algorithm>

#include "runtime/model/activations.h"
#include "runtime/model/expert_budget.h"
#include "runtime/model/expert_store.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/model_size.h"
#include "runtime/model/transformer.h"

namespace moed::model {
namespace {

// lm_head runs over tiles of rows, so that a long prompt's log-probabilities take no more memory.
constexpr int64_t kLogitsTileBytes = int64_t{64} << 20;

int64_t GpuLimitBytes(const ModelRunnerOptions& options, const backend::DeviceMemory& memory) {
  const double kept_free =
      (1 - options.gpu_memory_utilization) * static_cast<double>(memory.total_bytes);
  return memory.free_bytes - static_cast<int64_t>(kept_free);
}

}  // namespace

int64_t LogitsTileRows(const ModelConfig& config, int max_num_seqs) {
  const int64_t row_bytes = config.vocab_size * int64_t{sizeof(float)};
  return std::clamp<int64_t>(kLogitsTileBytes / row_bytes, 1, std::max(max_num_seqs, 16));
}

int DeviceTokens(const ModelRunnerOptions& options) {
  return static_cast<int>(
      std::min<int64_t>(std::clamp(options.max_num_seqs, 64, 256), options.max_num_batched_tokens));
}

int64_t TokensBesidePass(const ModelRunnerOptions& options, bool device_driven) {
  const int64_t decodes = std::min<int64_t>(options.max_num_seqs, options.max_num_batched_tokens);
  return device_driven ? std::max<int64_t>(decodes, DeviceTokens(options)) : decodes;
}

absl::StatusOr<MemoryPlan> PlanRunnerMemory(const ModelRunnerOptions& options,
                                            const ModelConfig& config, int64_t expert_bytes,
                                            backend::Backend& backend, bool device_driven) {
  const bool grows = !options.max_expert_budget.empty();
  const absl::StatusOr<ExpertBudget> budget =
      ParseExpertBudget(grows ? options.max_expert_budget : options.expert_budget);
  if (!budget.ok()) return budget.status();
  const ModelSize size = ComputeModelSize(config);
  int64_t limit_bytes = options.memory_limit_bytes;
  int64_t activation_bytes =
      Activations::Bytes(config, options.max_num_batched_tokens,
                         LogitsTileRows(config, options.max_num_seqs)) +
      Activations::BesideBytes(config, TokensBesidePass(options, device_driven));
  if (const auto memory = backend.Memory(); memory.has_value()) {
    limit_bytes = GpuLimitBytes(options, *memory);
  }
  if (device_driven) {
    activation_bytes += Transformer::DeviceLogitsBytes(config, DeviceTokens(options)) +
                        backend::RowSamplerBytes(DeviceTokens(options)) +
                        ExpertStore::StagingBytes(expert_bytes);
  }
  return PlanMemory(
      {.limit_bytes = limit_bytes,
       .dense_bytes = size.dense_bytes,
       .activation_bytes = activation_bytes,
       .kv_block_bytes = KvBlockBytes(config),
       .kv_block_tokens = kKvBlockTokens,
       .kv_cache_bytes = options.kv_cache_bytes,
       .max_num_seqs = options.max_num_seqs,
       .max_model_len = options.max_model_len > 0 ? options.max_model_len : config.max_positions,
       .num_experts = size.num_experts,
       .expert_bytes = expert_bytes,
       .min_slots = device_driven ? 0 : config.router.top_k,
       .expert_budget = *budget});
}

}  // namespace moed::model
