// Work on many experts at once, by threads that live as long as the call: sampling, measuring and
// encoding whole models.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache/expert_key.h"
#include "runtime/backend/buffer.h"
#include "runtime/model/model_config.h"

namespace moed::model {

// All experts of a model, layer by layer.
std::vector<cache::ExpertKey> AllExperts(const ModelConfig& config);

// As many threads as there are CPUs, or `wanted` if that is not 0, but no more than can each hold
// `bytes_each` within `most_bytes`.
int ExpertThreads(int wanted, size_t bytes_each, size_t most_bytes = size_t{4} << 30);

// Calls `visit` once for each key, from `threads` threads, and returns the first error after which
// nothing new is begun.
absl::Status ForEachExpert(std::span<const cache::ExpertKey> keys, int threads,
                           absl::FunctionRef<absl::Status(cache::ExpertKey key)> visit);

// Memory of the calling thread, at least `bytes` long, kept for its next call with the same
// `purpose` until the thread ends. RESOURCE_EXHAUSTED: no memory.
enum class ScratchPurpose : uint8_t { kSource, kTarget };
inline constexpr int kNumScratchPurposes = 2;
absl::StatusOr<std::span<std::byte>> ExpertScratch(ScratchPurpose purpose, size_t bytes);

}  // namespace moed::model
