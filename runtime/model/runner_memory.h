// What a runner's options ask of memory: the largest steps of each kind, and the plan that holds
// them. Pure but for the backend's answer to how much memory it has.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "runtime/backend/backend.h"
#include "runtime/model/memory_plan.h"
#include "runtime/model/model_config.h"
#include "runtime/model/model_runner.h"

namespace moed::model {

// Rows of logits that are worked out at a time.
int64_t LogitsTileRows(const ModelConfig& config, int max_num_seqs);

// Tokens of the largest step that goes without the host: a decode batch.
int DeviceTokens(const ModelRunnerOptions& options);

// Tokens of the largest step that runs between the layers of a prefill.
int64_t TokensBesidePass(const ModelRunnerOptions& options, bool device_driven);

// For experts of `expert_bytes` each. INVALID_ARGUMENT: a budget that is none; RESOURCE_EXHAUSTED,
// with the numbers: it does not fit.
absl::StatusOr<MemoryPlan> PlanRunnerMemory(const ModelRunnerOptions& options,
                                            const ModelConfig& config, int64_t expert_bytes,
                                            backend::Backend& backend, bool device_driven);

}  // namespace moed::model
