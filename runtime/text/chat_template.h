// A conversation to token ids by the checkpoint's Jinja chat template, under limits of work, depth
// and output. The text of control tokens inside message content never becomes a control token.
// Immutable and thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/text/tokenizer.h"

namespace moed::text {

struct ChatMessage {
  std::string role;
  std::string content;
};

class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;
  // INVALID_ARGUMENT if the template refuses the conversation (its raise_exception message),
  // RESOURCE_EXHAUSTED if it exceeds a limit.
  virtual absl::StatusOr<std::vector<int32_t>> Render(std::span<const ChatMessage> messages,
                                                      bool add_generation_prompt,
                                                      const Tokenizer& tokenizer) const = 0;
};

// NOT_FOUND if the checkpoint has no template.
absl::StatusOr<std::unique_ptr<ChatTemplate>> LoadChatTemplate(const std::string& directory);

}  // namespace moed::text
