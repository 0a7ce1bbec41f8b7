// Prompts to token ids: text through the tokenizer, conversations through the chat template, ids as
// they are. Oversized text is refused before it costs a tokenizer's time. Stateless; any thread.
#pragma once

#include <google/protobuf/repeated_ptr_field.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "proto/moed/v1/inference.pb.h"
#include "server/served_model.h"

namespace moed::server {

using ChatMessages = google::protobuf::RepeatedPtrField<v1::ChatMessage>;

// All give FAILED_PRECONDITION if the checkpoint lacks what it takes, INVALID_ARGUMENT naming
// `field` for input that cannot be a prompt.
absl::StatusOr<std::vector<int32_t>> EncodeText(absl::string_view field, const std::string& text,
                                                bool add_special_tokens, const ServedModel& model);
// RESOURCE_EXHAUSTED if the template exceeds its limits.
absl::StatusOr<std::vector<int32_t>> EncodeChat(absl::string_view field,
                                                const ChatMessages& messages,
                                                const ServedModel& model);

// INVALID_ARGUMENT for an id that the model has no embedding for.
absl::Status CheckTokenIds(absl::string_view field, absl::Span<const int32_t> ids,
                           const ServedModel& model);

// Between 1 token and what leaves room for one more in the context.
absl::Status CheckPromptLength(absl::string_view field, size_t num_tokens,
                               const ServedModel& model);

}  // namespace moed::server
