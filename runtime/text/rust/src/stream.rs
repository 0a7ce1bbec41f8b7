//! Decodes token by token, in constant time a token, and never emits part of a character.
//!
//! The texts of all pushes and of the finish together are what decoding all ids at once gives. One
//! exception: with byte fallback, a run of bytes that becomes invalid is all U+FFFD there, while
//! here the characters before the invalid byte have already been sent.

use std::mem::take;
use std::sync::Arc;

use crate::error::TextError;
use crate::pieces::{fallback_byte, Joining};
use crate::tokenizer::Tokenizer;

/// The longest wait for the rest of a character, in tokens, where only decoding again can tell.
const MAX_WINDOW_TOKENS: usize = 32;

pub struct TokenStream {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    state: State,
}

enum State {
    Bytes { pending: Vec<u8> },
    ByteFallback(ByteRun),
    Window(Window),
}

impl TokenStream {
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool) -> Self {
        let state = match tokenizer.joining() {
            Joining::Bytes(_) => State::Bytes { pending: Vec::new() },
            Joining::ByteFallback { strip, .. } => State::ByteFallback(ByteRun::new(*strip)),
            Joining::Window => State::Window(Window::default()),
        };
        TokenStream { tokenizer, skip_special_tokens, state }
    }

    /// The text that `id` completes. An id without a token (a padding row of the embedding) is
    /// empty, as it is when decoding all at once.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        if self.skip_special_tokens && self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        match (&mut self.state, self.tokenizer.joining()) {
            (State::Bytes { pending }, Joining::Bytes(pieces)) => {
                pending.extend_from_slice(pieces.get(id));
                Ok(take_characters(pending))
            }
            (State::ByteFallback(run), Joining::ByteFallback { pieces, .. }) => {
                Ok(run.push(pieces.get(id)))
            }
            (State::Window(window), _) => window.push(&self.tokenizer, id),
            _ => Err(TextError::internal("the stream is not of this tokenizer")),
        }
    }

    /// What is still held back, as it stands.
    pub fn finish(&mut self) -> Result<String, TextError> {
        match &mut self.state {
            State::Bytes { pending } => Ok(String::from_utf8_lossy(&take(pending)).into_owned()),
            State::ByteFallback(run) => Ok(run.end_run()),
            State::Window(window) => window.finish(&self.tokenizer),
        }
    }
}

/// Removes all whole characters from the front of `pending`. Invalid bytes become U+FFFD as soon as
/// they cannot become a character; an incomplete character at the end stays.
fn take_characters(pending: &mut Vec<u8>) -> String {
    let mut text = String::with_capacity(pending.len());
    let mut rest = pending.as_slice();
    let incomplete = loop {
        let Err(error) = std::str::from_utf8(rest) else {
            text.push_str(&String::from_utf8_lossy(rest));
            break 0;
        };
        let (valid, invalid) = rest.split_at(error.valid_up_to());
        text.push_str(&String::from_utf8_lossy(valid));
        let Some(length) = error.error_len() else { break invalid.len() };
        text.push(char::REPLACEMENT_CHARACTER);
        rest = &invalid[length..];
    };
    pending.drain(..pending.len() - incomplete);
    text
}

/// A run of byte tokens: characters leave it when complete, and once it is invalid every further
/// byte of the run is U+FFFD.
struct ByteRun {
    pending: Vec<u8>,
    invalid: bool,
    strip: (char, usize),
}

impl ByteRun {
    fn new(strip: (char, usize)) -> Self {
        ByteRun { pending: Vec::new(), invalid: false, strip }
    }

    fn push(&mut self, piece: &[u8]) -> String {
        let text = match fallback_byte(piece) {
            Some(byte) => self.push_byte(byte),
            None if piece.is_empty() => String::new(),
            None => self.end_run() + &String::from_utf8_lossy(piece),
        };
        self.strip_start(text)
    }

    fn push_byte(&mut self, byte: u8) -> String {
        self.pending.push(byte);
        if !self.invalid {
            match std::str::from_utf8(&self.pending) {
                Ok(_) => return take_characters(&mut self.pending),
                Err(e) if e.error_len().is_none() => return String::new(),
                Err(_) => self.invalid = true,
            }
        }
        self.replace_pending()
    }

    fn end_run(&mut self) -> String {
        self.invalid = false;
        self.replace_pending()
    }

    fn replace_pending(&mut self) -> String {
        let text = "\u{fffd}".repeat(self.pending.len());
        self.pending.clear();
        text
    }

    fn strip_start(&mut self, text: String) -> String {
        let (stripped, left) = self.strip;
        if left == 0 || text.is_empty() {
            return text;
        }
        let count = text.chars().take(left).take_while(|c| *c == stripped).count();
        let all = count == text.chars().count();
        self.strip.1 = if all { left - count } else { 0 };
        text.chars().skip(count).collect()
    }
}

/// Decodes the tokens of the last emitted text together with the new ones, and emits what is new.
#[derive(Default)]
struct Window {
    ids: Vec<u32>,
    emitted_ids: usize,
    emitted: String,
}

impl Window {
    fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, TextError> {
        if !tokenizer.has_token(id) {
            return Ok(String::new());
        }
        self.ids.push(id);
        let text = tokenizer.decode_known(&self.ids, false)?;
        let waits = text.ends_with(char::REPLACEMENT_CHARACTER) || text.len() <= self.emitted.len();
        if waits && self.ids.len() - self.emitted_ids < MAX_WINDOW_TOKENS {
            return Ok(String::new());
        }
        let new = self.new_part(&text);
        self.ids.drain(..self.emitted_ids);
        self.emitted_ids = self.ids.len();
        self.emitted = tokenizer.decode_known(&self.ids, false)?;
        Ok(new)
    }

    fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        let text = tokenizer.decode_known(&take(&mut self.ids), false)?;
        Ok(self.new_part(&text))
    }

    fn new_part(&self, text: &str) -> String {
        let common = |(a, b): &(char, char)| a == b;
        let same = text.chars().zip(self.emitted.chars()).take_while(common).count();
        text.chars().skip(same).collect()
    }
}
