#include "server/encode_prompt.h"

#include "absl/strings/str_cat.h"
#include "server/grpc_status.h"

namespace moed::server {
namespace {

// Longer text than this for each token of the context cannot fit: tokens of natural text average
// four bytes, and only runs of blanks or dashes come near this.
constexpr int64_t kMaxBytesPerToken = 64;

absl::Status RequireTokenizer(const ServedModel& model) {
  if (model.tokenizer != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "model \"", model.name, "\" has no tokenizer.json; send `tokens` instead of text"));
}

absl::Status CheckTextSize(absl::string_view field, size_t bytes, const ServedModel& model) {
  const int64_t max_len = model.description.max_model_len;
  if (static_cast<int64_t>(bytes) <= max_len * kMaxBytesPerToken) return absl::OkStatus();
  return InvalidField(
      field, absl::StrCat("the text has ", bytes, " bytes, far beyond the context of ", max_len,
                          " tokens"));
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> EncodeText(absl::string_view field, const std::string& text,
                                                bool add_special_tokens, const ServedModel& model) {
  if (absl::Status status = RequireTokenizer(model); !status.ok()) return status;
  if (absl::Status status = CheckTextSize(field, text.size(), model); !status.ok()) return status;
  // A raw prompt is written by whoever knows the model's control tokens; only Chat separates
  // content from control.
  return model.tokenizer->Encode(text, add_special_tokens, /*parse_special=*/true);
}

absl::StatusOr<std::vector<int32_t>> EncodeChat(absl::string_view field,
                                                const ChatMessages& messages,
                                                const ServedModel& model) {
  if (absl::Status status = RequireTokenizer(model); !status.ok()) return status;
  if (model.chat_template == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "model \"", model.name, "\" has no chat template; use Generate with a complete prompt"));
  }
  if (messages.empty()) return InvalidField(field, "at least one message is needed");
  std::vector<text::ChatMessage> conversation;
  conversation.reserve(messages.size());
  size_t bytes = 0;
  for (const v1::ChatMessage& message : messages) {
    if (message.role().empty()) {
      return InvalidField(absl::StrCat(field, "[", conversation.size(), "].role"),
                          "is empty; usual roles are system, user and assistant");
    }
    bytes += message.role().size() + message.content().size();
    conversation.push_back({message.role(), message.content()});
  }
  if (absl::Status status = CheckTextSize(field, bytes, model); !status.ok()) return status;
  return model.chat_template->Render(conversation, /*add_generation_prompt=*/true,
                                     *model.tokenizer);
}

absl::Status CheckTokenIds(absl::string_view field, absl::Span<const int32_t> ids,
                           const ServedModel& model) {
  const int64_t vocab_size = model.description.vocab_size;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    return InvalidField(field,
                        absl::StrCat("token ", ids[i], " at position ", i,
                                     " is not in this model's vocabulary, 0 to ", vocab_size - 1));
  }
  return absl::OkStatus();
}

absl::Status CheckPromptLength(absl::string_view field, size_t num_tokens,
                               const ServedModel& model) {
  if (num_tokens == 0) return InvalidField(field, "the prompt is empty");
  const int64_t max_len = model.description.max_model_len;
  if (static_cast<int64_t>(num_tokens) < max_len) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("the prompt has ", num_tokens,
                                          " tokens; with at least one to generate, the context of ",
                                          max_len, " holds a prompt of at most ", max_len - 1));
}

}  // namespace moed::server
