//! Tokenizers and chat templates, exactly as Hugging Face's Python packages treat them, behind a C
//! ABI (runtime/text/rust_abi.h).

mod abi;
mod added_tokens;
mod chat_template;
mod content_marks;
mod error;
mod jinja_python;
mod pieces;
mod stream;
mod tokenizer;
