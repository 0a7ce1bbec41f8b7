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

namespace moed::text {

class TokenStream;

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // INVALID_ARGUMENT if the text is not UTF-8. With `parse_special` false, the text of control
  // tokens inside `text` is encoded as plain characters (user content).
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                                      bool add_special_tokens,
                                                      bool parse_special) const = 0;
  // INVALID_ARGUMENT for an id outside the vocabulary.
  virtual absl::StatusOr<std::string> Decode(std::span<const int32_t> ids,
                                             bool skip_special_tokens) const = 0;
  virtual std::unique_ptr<TokenStream> NewStream(bool skip_special_tokens) const = 0;
  virtual int vocab_size() const = 0;  // largest id + 1, added tokens included
};

// Decodes a sequence token by token; never emits part of a character.
class TokenStream {
 public:
  virtual ~TokenStream() = default;
  // The text that `id` completes, perhaps empty.
  virtual absl::StatusOr<std::string> Push(int32_t id) = 0;
  // What is still held back, as it stands.
  virtual absl::StatusOr<std::string> Finish() = 0;
};

// NOT_FOUND if the directory has no tokenizer.json; INVALID_ARGUMENT if it cannot be understood.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& directory);

}  // namespace moed::text
