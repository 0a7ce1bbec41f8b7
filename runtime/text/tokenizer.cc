#include "runtime/text/tokenizer.h"

#include "absl/strings/str_cat.h"
#include "runtime/text/read_file.h"
#include "runtime/text/rust_call.h"

namespace moed::text {

void TokenStream::Free::operator()(MoedTokenStream* stream) const { moed_stream_free(stream); }

absl::StatusOr<std::string> TokenStream::Push(int32_t id) {
  return CallRust<std::string>([&](MoedSink text, MoedSink error) {
    return moed_stream_push(stream_.get(), id, text, error);
  });
}

absl::StatusOr<std::string> TokenStream::Finish() {
  return CallRust<std::string>([&](MoedSink text, MoedSink error) {
    return moed_stream_finish(stream_.get(), text, error);
  });
}

void Tokenizer::Free::operator()(MoedTokenizer* tokenizer) const { moed_tokenizer_free(tokenizer); }

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                                       bool add_special_tokens,
                                                       bool parse_special) const {
  return CallRust<std::vector<int32_t>>([&](MoedSink ids, MoedSink error) {
    return moed_tokenizer_encode(tokenizer_.get(), ToSlice(text), add_special_tokens, parse_special,
                                 ids, error);
  });
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const int32_t> ids,
                                              bool skip_special_tokens) const {
  return CallRust<std::string>([&](MoedSink text, MoedSink error) {
    return moed_tokenizer_decode(tokenizer_.get(), ids.data(), ids.size(), skip_special_tokens,
                                 text, error);
  });
}

std::unique_ptr<TokenStream> Tokenizer::NewStream(bool skip_special_tokens) const {
  return std::make_unique<TokenStream>(moed_stream_new(tokenizer_.get(), skip_special_tokens));
}

int Tokenizer::vocab_size() const {
  return static_cast<int>(moed_tokenizer_vocab_size(tokenizer_.get()));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& directory) {
  const absl::StatusOr<std::string> json = ReadFile(absl::StrCat(directory, "/tokenizer.json"));
  if (!json.ok()) return json.status();
  MoedTokenizer* tokenizer = nullptr;
  std::string error;
  const int32_t code = moed_tokenizer_new(ToSlice(*json), &tokenizer, SinkTo(error));
  if (code != 0) return ToStatus(code, absl::StrCat(directory, ": ", error));
  return std::make_unique<Tokenizer>(tokenizer);
}

}  // namespace moed::text
