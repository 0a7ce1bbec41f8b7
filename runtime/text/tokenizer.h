// Text to token ids and back by a checkpoint's tokenizer.json, exactly as Hugging Face tokenizers
// does it. Immutable and thread-safe; TokenStream belongs to one request.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

struct MoedTokenizer;
struct MoedTokenStream;

namespace moed::text {

// Decodes a sequence token by token; never emits part of a character.
class TokenStream {
 public:
  explicit TokenStream(MoedTokenStream* stream) : stream_(stream) {}

  // The text that `id` completes, perhaps empty. An id without a token (a padding row of the
  // embedding) has no text; INVALID_ARGUMENT for a negative one.
  absl::StatusOr<std::string> Push(int32_t id);
  // What is still held back, as it stands.
  absl::StatusOr<std::string> Finish();

 private:
  struct Free {
    void operator()(MoedTokenStream* stream) const;
  };
  std::unique_ptr<MoedTokenStream, Free> stream_;
};

class Tokenizer {
 public:
  explicit Tokenizer(MoedTokenizer* tokenizer) : tokenizer_(tokenizer) {}

  // INVALID_ARGUMENT if the text is not UTF-8. With `parse_special` false, the text of control
  // tokens inside `text` is encoded as plain characters (user content).
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_special_tokens,
                                              bool parse_special) const;
  // INVALID_ARGUMENT for an id outside the vocabulary.
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids, bool skip_special_tokens) const;
  // The stream may outlive the tokenizer.
  std::unique_ptr<TokenStream> NewStream(bool skip_special_tokens) const;
  int vocab_size() const;  // largest id + 1, added tokens included

  // For ChatTemplate.
  const MoedTokenizer* handle() const { return tokenizer_.get(); }

 private:
  struct Free {
    void operator()(MoedTokenizer* tokenizer) const;
  };
  std::unique_ptr<MoedTokenizer, Free> tokenizer_;
};

// NOT_FOUND if the directory has no tokenizer.json; INVALID_ARGUMENT if it cannot be understood.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& directory);

}  // namespace moed::text
