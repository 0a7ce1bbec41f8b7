// The C ABI of the Rust library in rust/ (Hugging Face tokenizers, minijinja). Used by this folder
// alone. Handles are owned by the caller and freed once; const handles may be used by many threads
// at once, a stream by one. No call unwinds: a panic in Rust comes back as a code.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct MoedTokenizer;
struct MoedTokenStream;
struct MoedChatTemplate;

// Borrowed for the call.
struct MoedSlice {
  const char* data;
  size_t size;
};

struct MoedChatMessage {
  MoedSlice role;
  MoedSlice content;
};

// Takes a result: `write` is called at most once, before the function returns, with `count` items
// (bytes of text, or 32-bit token ids) that live as long as that call.
struct MoedSink {
  void* context;
  void (*write)(void* context, const void* items, size_t count);
};

// Functions that return int32_t give 0, or one of these and the reason in `error`.
enum MoedTextCode : int32_t {
  kMoedTextInvalidArgument = 1,
  kMoedTextResourceExhausted = 2,
  kMoedTextInternal = 3,
};

int32_t moed_tokenizer_new(MoedSlice json, MoedTokenizer** tokenizer, MoedSink error);
void moed_tokenizer_free(MoedTokenizer* tokenizer);
uint32_t moed_tokenizer_vocab_size(const MoedTokenizer* tokenizer);
int32_t moed_tokenizer_encode(const MoedTokenizer* tokenizer, MoedSlice text,
                              bool add_special_tokens, bool parse_special, MoedSink ids,
                              MoedSink error);
int32_t moed_tokenizer_decode(const MoedTokenizer* tokenizer, const int32_t* ids, size_t count,
                              bool skip_special_tokens, MoedSink text, MoedSink error);

// The stream keeps what it needs of the tokenizer alive.
MoedTokenStream* moed_stream_new(const MoedTokenizer* tokenizer, bool skip_special_tokens);
void moed_stream_free(MoedTokenStream* stream);
int32_t moed_stream_push(MoedTokenStream* stream, int32_t id, MoedSink text, MoedSink error);
int32_t moed_stream_finish(MoedTokenStream* stream, MoedSink text, MoedSink error);

// `source`: chat_template.jinja, null if there is none. `config`: tokenizer_config.json, perhaps
// empty. `*chat_template` is null if neither has a template.
int32_t moed_chat_template_new(const MoedSlice* source, MoedSlice config,
                               MoedChatTemplate** chat_template, MoedSink error);
void moed_chat_template_free(MoedChatTemplate* chat_template);
int32_t moed_chat_template_render(const MoedChatTemplate* chat_template,
                                  const MoedTokenizer* tokenizer, const MoedChatMessage* messages,
                                  size_t count, bool add_generation_prompt, MoedSink ids,
                                  MoedSink error);

}  // extern "C"
