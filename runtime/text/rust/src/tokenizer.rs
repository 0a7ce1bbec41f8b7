//! A tokenizer.json: text to ids and ids to text.

use std::collections::HashSet;
use std::ops::Range;

use tokenizers::{Model, OffsetType, PreTokenizer};

use crate::added_tokens::AddedTokens;
use crate::error::TextError;
use crate::pieces::Joining;

/// No vocabulary comes near; ids beyond it are a damaged file, and tables are sized by ids.
const MAX_VOCAB_SIZE: u32 = 1 << 24;

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    added: AddedTokens,
    joining: Joining,
    vocab_size: u32,
    special_ids: HashSet<u32>,
    control_texts: Vec<String>,
}

impl Tokenizer {
    pub fn new(json: &[u8]) -> Result<Self, TextError> {
        let invalid = |e: tokenizers::Error| TextError::invalid(format!("tokenizer.json: {e}"));
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(invalid)?;
        // Limits belong to the request, not to the file.
        inner.with_truncation(None).map_err(invalid)?.with_padding(None);
        let largest = inner.get_vocab(true).into_values().max();
        let vocab_size = largest.map_or(0, |id| id.saturating_add(1));
        if vocab_size == 0 || vocab_size > MAX_VOCAB_SIZE {
            let reason = format!("tokenizer.json: the largest token id is {largest:?}");
            return Err(TextError::invalid(reason));
        }
        let tokens: Vec<_> = inner.get_added_tokens_decoder().into_iter().collect();
        let special = tokens.iter().filter(|(_, token)| token.special);
        let special_ids = special.clone().map(|(id, _)| *id).collect();
        let control_texts = special.map(|(_, token)| token.content.clone()).collect();
        let added = AddedTokens::new(tokens, inner.get_normalizer())?;
        let joining = Joining::new(&inner, vocab_size).map_err(invalid)?;
        Ok(Tokenizer { inner, added, joining, vocab_size, special_ids, control_texts })
    }

    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    pub fn joining(&self) -> &Joining {
        &self.joining
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    pub fn has_token(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some()
    }

    /// The texts that stand for control tokens.
    pub fn control_texts(&self) -> &[String] {
        &self.control_texts
    }

    /// `literal`: ascending byte ranges whose text is never taken as part of a control token.
    pub fn encode(
        &self,
        text: &str,
        literal: &[Range<usize>],
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, TextError> {
        let encode = || -> tokenizers::Result<Vec<u32>> {
            let mut pieces = self.added.split(text, literal, self.inner.get_normalizer())?;
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            let model = self.inner.get_model();
            pieces.tokenize(|piece| model.tokenize(piece.get()))?;
            let encoding = pieces.into_encoding(None, 0, OffsetType::None)?;
            let encoding = self.inner.post_process(encoding, None, add_special_tokens)?;
            Ok(encoding.get_ids().to_vec())
        };
        encode().map_err(|e| TextError::invalid(format!("the text cannot be tokenized: {e}")))
    }

    pub fn decode(&self, ids: &[i32], skip_special_tokens: bool) -> Result<String, TextError> {
        let known = |id: &i32| u32::try_from(*id).ok().filter(|id| *id < self.vocab_size);
        let check = |id| {
            known(id).ok_or_else(|| {
                let size = self.vocab_size;
                TextError::invalid(format!("token id {id} is outside the vocabulary of {size}"))
            })
        };
        let ids = ids.iter().map(check).collect::<Result<Vec<u32>, _>>()?;
        self.decode_known(&ids, skip_special_tokens)
    }

    pub fn decode_known(
        &self,
        ids: &[u32],
        skip_special_tokens: bool,
    ) -> Result<String, TextError> {
        let decoded = self.inner.decode(ids, skip_special_tokens);
        decoded.map_err(|e| TextError::invalid(format!("the tokens cannot be decoded: {e}")))
    }
}
