// A conversation to token ids by the checkpoint's Jinja chat template, under limits of work, depth
// and output. The text of control tokens inside message content never becomes a control token;
// rust/src/content_marks.rs says how. Immutable and thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/text/tokenizer.h"

struct MoedChatTemplate;

namespace moed::text {

struct ChatMessage {
  std::string role;  // 1 to 64 letters, digits, '_' or '-'
  std::string content;
};

class ChatTemplate {
 public:
  explicit ChatTemplate(MoedChatTemplate* chat_template) : template_(chat_template) {}

  // INVALID_ARGUMENT if the template refuses the conversation (its raise_exception message) or a
  // message is not UTF-8, RESOURCE_EXHAUSTED if it exceeds a limit.
  absl::StatusOr<std::vector<int32_t>> Render(std::span<const ChatMessage> messages,
                                              bool add_generation_prompt,
                                              const Tokenizer& tokenizer) const;

 private:
  struct Free {
    void operator()(MoedChatTemplate* chat_template) const;
  };
  std::unique_ptr<MoedChatTemplate, Free> template_;
};

// From chat_template.jinja, else from tokenizer_config.json. NOT_FOUND if the checkpoint has no
// template; INVALID_ARGUMENT if it has one that is not valid Jinja.
absl::StatusOr<std::unique_ptr<ChatTemplate>> LoadChatTemplate(const std::string& directory);

}  // namespace moed::text
