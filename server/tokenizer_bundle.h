// The files by which a gateway rebuilds this checkpoint's tokenizer, packed once when the model is
// loaded. Immutable.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace moed::server {

struct TokenizerBundle {
  std::string zip;
  std::string sha256;  // of `zip`, in hexadecimal
};

// tokenizer.json, its config, special tokens and templates, config.json and generation_config.json,
// as far as `directory` has them. NOT_FOUND without a tokenizer.json; errors of text::ReadFile.
absl::StatusOr<TokenizerBundle> PackTokenizer(const std::string& directory);

}  // namespace moed::server
