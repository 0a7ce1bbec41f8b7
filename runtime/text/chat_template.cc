#include "runtime/text/chat_template.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/text/read_file.h"
#include "runtime/text/rust_call.h"

namespace moed::text {

void ChatTemplate::Free::operator()(MoedChatTemplate* chat_template) const {
  moed_chat_template_free(chat_template);
}

absl::StatusOr<std::vector<int32_t>> ChatTemplate::Render(std::span<const ChatMessage> messages,
                                                          bool add_generation_prompt,
                                                          const Tokenizer& tokenizer) const {
  std::vector<MoedChatMessage> slices;
  slices.reserve(messages.size());
  for (const ChatMessage& message : messages) {
    slices.push_back({ToSlice(message.role), ToSlice(message.content)});
  }
  return CallRust<std::vector<int32_t>>([&](MoedSink ids, MoedSink error) {
    return moed_chat_template_render(template_.get(), tokenizer.handle(), slices.data(),
                                     slices.size(), add_generation_prompt, ids, error);
  });
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> LoadChatTemplate(const std::string& directory) {
  const absl::StatusOr<std::string> source =
      ReadFile(absl::StrCat(directory, "/chat_template.jinja"));
  if (!source.ok() && !absl::IsNotFound(source.status())) return source.status();
  absl::StatusOr<std::string> config = ReadFile(absl::StrCat(directory, "/tokenizer_config.json"));
  if (absl::IsNotFound(config.status())) config = "";
  if (!config.ok()) return config.status();

  const MoedSlice source_slice = source.ok() ? ToSlice(*source) : MoedSlice{};
  MoedChatTemplate* chat_template = nullptr;
  std::string error;
  const int32_t code = moed_chat_template_new(source.ok() ? &source_slice : nullptr,
                                              ToSlice(*config), &chat_template, SinkTo(error));
  if (code != 0) return ToStatus(code, absl::StrCat(directory, ": ", error));
  if (chat_template == nullptr) {
    return absl::NotFoundError(absl::StrCat(directory, ": no chat template"));
  }
  return std::make_unique<ChatTemplate>(chat_template);
}

}  // namespace moed::text
