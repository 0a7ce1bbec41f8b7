//! What each token id adds to decoded text, for the two kinds of decoder that nearly all
//! checkpoints have, so that a stream of tokens is decoded in constant time a token.

use tokenizers::{Decoder, DecoderWrapper, Tokenizer};

/// How a tokenizer's decoder joins tokens.
pub enum Joining {
    /// Pieces are bytes, and the text is their concatenation read as UTF-8.
    Bytes(Pieces),
    /// Pieces are text or single bytes, and `strip.1` times `strip.0` is cut from the text's start.
    ByteFallback { pieces: Pieces, strip: (char, usize) },
    /// Anything else: decode a window of tokens again for each one.
    Window,
}

impl Joining {
    pub fn new(tokenizer: &Tokenizer, vocab_size: u32) -> tokenizers::Result<Joining> {
        let steps = match tokenizer.get_decoder() {
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
            Some(single) => std::slice::from_ref(single),
            None => &[],
        };
        if let [DecoderWrapper::ByteLevel(_)] = steps {
            let table = byte_of_char();
            let piece = |token: String| Ok(byte_level(&token, &table));
            return Ok(Joining::Bytes(Pieces::new(tokenizer, vocab_size, piece)?));
        }
        let Some((replacements, strip)) = byte_fallback_steps(steps) else {
            return Ok(Joining::Window);
        };
        let piece = |token: String| -> tokenizers::Result<Vec<u8>> {
            let mut tokens = vec![token];
            for replacement in replacements {
                tokens = replacement.decode_chain(tokens)?;
            }
            Ok(tokens.concat().into_bytes())
        };
        Ok(Joining::ByteFallback { pieces: Pieces::new(tokenizer, vocab_size, piece)?, strip })
    }
}

/// One byte string an id, in one buffer.
pub struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Pieces {
    fn new(
        tokenizer: &Tokenizer,
        vocab_size: u32,
        piece: impl Fn(String) -> tokenizers::Result<Vec<u8>>,
    ) -> tokenizers::Result<Self> {
        let mut pieces = Pieces { bytes: Vec::new(), ends: Vec::new() };
        for id in 0..vocab_size {
            if let Some(token) = tokenizer.id_to_token(id) {
                pieces.bytes.extend(piece(token)?);
            }
            pieces.ends.push(pieces.bytes.len());
        }
        Ok(pieces)
    }

    /// Empty for an id without a token.
    pub fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }
}

/// The byte that a piece such as `<0xE2>` stands for.
pub fn fallback_byte(piece: &[u8]) -> Option<u8> {
    let digits = piece.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

/// The steps before ByteFallback and what is stripped after it, if the rest is as in Llama's
/// decoder: Replace..., ByteFallback, then perhaps Fuse, then perhaps Strip of the start.
fn byte_fallback_steps(steps: &[DecoderWrapper]) -> Option<(&[DecoderWrapper], (char, usize))> {
    let is_replace = |step: &DecoderWrapper| matches!(step, DecoderWrapper::Replace(_));
    let count = steps.iter().take_while(|step| is_replace(step)).count();
    let (replacements, rest) = steps.split_at(count);
    match rest {
        [DecoderWrapper::ByteFallback(_)]
        | [DecoderWrapper::ByteFallback(_), DecoderWrapper::Fuse(_)] => {
            Some((replacements, (' ', 0)))
        }
        [DecoderWrapper::ByteFallback(_), DecoderWrapper::Fuse(_), DecoderWrapper::Strip(strip)]
            if strip.stop == 0 =>
        {
            Some((replacements, (strip.content, strip.start)))
        }
        _ => None,
    }
}

/// GPT-2's byte alphabet: printable Latin-1 bytes stand for themselves, the others in order for
/// U+0100 and up.
fn byte_of_char() -> Vec<Option<u8>> {
    let mut table = vec![None; 0x144];
    let mut next = 0x100;
    for byte in 0..=255u8 {
        let c = match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => usize::from(byte),
            _ => {
                next += 1;
                next - 1
            }
        };
        table[c] = Some(byte);
    }
    table
}

/// A token with a character outside the alphabet (an added token) stands for its own UTF-8.
fn byte_level(token: &str, table: &[Option<u8>]) -> Vec<u8> {
    let byte = |c: char| table.get(c as usize).copied().flatten();
    token.chars().map(byte).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.into())
}
