// What a request must be to enter the engine. Pure; called on the submitting thread.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/request.h"

namespace moed::engine {

inline constexpr int kMaxSequencesPerRequest = 128;
// The output thread searches the text for all of them at every token.
inline constexpr int kMaxStopStrings = 16;
inline constexpr int kMaxStopStringBytes = 1024;

// INVALID_ARGUMENT names the field and its range; FAILED_PRECONDITION: text without a tokenizer.
// `max_sequence_tokens` is the longest sequence, prompt and generated, that can ever run.
absl::Status ValidateRequest(const Request& request, const EngineOptions& options,
                             int64_t max_sequence_tokens, bool has_tokenizer);

}  // namespace moed::engine
