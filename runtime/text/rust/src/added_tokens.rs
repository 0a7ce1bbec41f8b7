//! Finds added tokens in text, as Hugging Face tokenizers does, except that a control token (an
//! added token with `special`) is found only where none of its characters is literal.
//!
//! Two passes, as there: tokens with `normalized: false` are cut from the raw text, the others from
//! the normalized pieces. Each takes the leftmost, then longest match.

use std::cmp::Reverse;
use std::ops::Range;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use tokenizers::normalizer::Range as Referential;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, NormalizerWrapper, PreTokenizedString, Token,
};

use crate::error::TextError;

pub struct AddedTokens {
    raw: Pass,
    normalized: Pass,
}

impl AddedTokens {
    pub fn new(
        mut tokens: Vec<(u32, AddedToken)>,
        normalizer: Option<&NormalizerWrapper>,
    ) -> Result<Self, TextError> {
        tokens.retain(|(_, token)| !token.content.is_empty());
        tokens.sort_by_key(|(id, _)| *id);
        let (normalized, raw) = tokens.into_iter().partition(|(_, token)| token.normalized);
        Ok(AddedTokens {
            raw: Pass::new(raw, None)?,
            normalized: Pass::new(normalized, normalizer)?,
        })
    }

    /// The text in pieces: added tokens with their ids, and normalized text between them.
    /// `literal`: ascending byte ranges of `text` that cannot be part of a control token.
    pub fn split(
        &self,
        text: &str,
        literal: &[Range<usize>],
        normalizer: Option<&NormalizerWrapper>,
    ) -> tokenizers::Result<PreTokenizedString> {
        let mut pieces = PreTokenizedString::from(text);
        let open = complement(literal, text.len());
        pieces.split(|_, piece| self.raw.cut(piece, &open))?;
        pieces.split(|_, mut piece| {
            if let Some(normalizer) = normalizer {
                normalizer.normalize(&mut piece)?;
            }
            let open = match self.normalized.control.tokens.is_empty() {
                true => Vec::new(),
                false => complement(&literal_after_normalizing(&piece, literal), piece.len()),
            };
            self.normalized.cut(piece, &open)
        })?;
        Ok(pieces)
    }
}

/// The tokens of one pass: control tokens are searched in the open ranges, others everywhere.
struct Pass {
    control: Matcher,
    plain: Matcher,
}

struct Matcher {
    automaton: AhoCorasick,
    tokens: Vec<(u32, AddedToken)>,
}

struct Found<'a> {
    range: Range<usize>,
    id: u32,
    token: &'a AddedToken,
}

impl Pass {
    fn new(
        tokens: Vec<(u32, AddedToken)>,
        normalizer: Option<&NormalizerWrapper>,
    ) -> Result<Self, TextError> {
        let (control, plain) = tokens.into_iter().partition(|(_, token)| token.special);
        Ok(Pass {
            control: Matcher::new(control, normalizer)?,
            plain: Matcher::new(plain, normalizer)?,
        })
    }

    fn cut(
        &self,
        piece: NormalizedString,
        open: &[Range<usize>],
    ) -> tokenizers::Result<Vec<(NormalizedString, Option<Vec<Token>>)>> {
        let text = piece.get();
        let mut parts = Vec::new();
        let mut covered = 0;
        for (id, range) in self.find(text, open) {
            if covered < range.start {
                parts.push((covered..range.start, None));
            }
            covered = range.end;
            parts.push((range, Some(id)));
        }
        if covered < text.len() {
            parts.push((covered..text.len(), None));
        }
        let slice = |(range, id): (Range<usize>, Option<u32>)| {
            let part =
                piece.slice(Referential::Normalized(range)).ok_or("a token's range is off")?;
            let tokens = id.map(|id| vec![Token::new(id, part.get().to_owned(), (0, part.len()))]);
            Ok((part, tokens))
        };
        parts.into_iter().map(slice).collect()
    }

    fn find(&self, text: &str, open: &[Range<usize>]) -> Vec<(u32, Range<usize>)> {
        let everywhere = 0..text.len();
        let mut control = Search::new(&self.control, text, open);
        let mut plain = Search::new(&self.plain, text, std::slice::from_ref(&everywhere));
        let mut found = Vec::new();
        let mut from = 0;
        let mut covered = 0;
        while let Some(next) = earlier(control.peek(from), plain.peek(from)) {
            let mut range = next.range.clone();
            from = range.end;
            if next.token.single_word && touches_word(text, &range) {
                continue;
            }
            if next.token.lstrip {
                range.start = text[..range.start].trim_end().len().max(covered);
            }
            if next.token.rstrip {
                range.end = text.len() - text[range.end..].trim_start().len();
            }
            from = range.end;
            covered = range.end;
            found.push((next.id, range));
        }
        found
    }
}

impl Matcher {
    fn new(
        tokens: Vec<(u32, AddedToken)>,
        normalizer: Option<&NormalizerWrapper>,
    ) -> Result<Self, TextError> {
        let pattern = |token: &AddedToken| -> tokenizers::Result<String> {
            let mut pattern = NormalizedString::from(token.content.as_str());
            if let Some(normalizer) = normalizer {
                normalizer.normalize(&mut pattern)?;
            }
            Ok(pattern.get().to_owned())
        };
        let patterns =
            tokens.iter().map(|(_, token)| pattern(token)).collect::<Result<Vec<_>, _>>();
        let patterns = patterns.map_err(|e| TextError::invalid(format!("added token: {e}")))?;
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(patterns)
            .map_err(|e| TextError::invalid(format!("added tokens: {e}")))?;
        Ok(Matcher { automaton, tokens })
    }
}

/// Matches of one matcher inside some ranges of a text, from left to right. Looks at each byte a
/// bounded number of times, however often it is asked.
struct Search<'a> {
    matcher: &'a Matcher,
    text: &'a str,
    ranges: std::iter::Peekable<std::slice::Iter<'a, Range<usize>>>,
    next: Option<(Range<usize>, usize)>,
}

impl<'a> Search<'a> {
    fn new(matcher: &'a Matcher, text: &'a str, ranges: &'a [Range<usize>]) -> Self {
        let ranges = if matcher.tokens.is_empty() { &[] } else { ranges };
        Search { matcher, text, ranges: ranges.iter().peekable(), next: None }
    }

    /// The first match that starts at or after `from`, which must not decrease.
    fn peek(&mut self, from: usize) -> Option<Found<'a>> {
        if self.next.as_ref().is_none_or(|(range, _)| range.start < from) {
            self.next = self.search(from);
        }
        let (range, pattern) = self.next.clone()?;
        let (id, token) = &self.matcher.tokens[pattern];
        Some(Found { range, id: *id, token })
    }

    fn search(&mut self, from: usize) -> Option<(Range<usize>, usize)> {
        while let Some(range) = self.ranges.peek() {
            let start = range.start.max(from);
            if start < range.end {
                let input = Input::new(self.text).span(start..range.end);
                if let Some(found) = self.matcher.automaton.find(input) {
                    return Some((found.range(), found.pattern().as_usize()));
                }
            }
            self.ranges.next();
        }
        None
    }
}

fn earlier<'a>(a: Option<Found<'a>>, b: Option<Found<'a>>) -> Option<Found<'a>> {
    let order = |found: &Found| (found.range.start, Reverse(found.range.end));
    a.into_iter().chain(b).min_by_key(order)
}

fn touches_word(text: &str, range: &Range<usize>) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    text[..range.start].chars().next_back().is_some_and(in_word)
        || text[range.end..].chars().next().is_some_and(in_word)
}

fn complement(ranges: &[Range<usize>], length: usize) -> Vec<Range<usize>> {
    let starts = std::iter::once(0).chain(ranges.iter().map(|range| range.end));
    let ends = ranges.iter().map(|range| range.start).chain(std::iter::once(length));
    starts.zip(ends).filter(|(start, end)| start < end).map(|(start, end)| start..end).collect()
}

/// The characters of a normalized piece that come from a literal range of the original text.
fn literal_after_normalizing(
    piece: &NormalizedString,
    literal: &[Range<usize>],
) -> Vec<Range<usize>> {
    let shift = piece.offsets_original().0;
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (start, c) in piece.get().char_indices() {
        let range = start..start + c.len_utf8();
        let Some(original) = piece.convert_offsets(Referential::Normalized(range.clone())) else {
            continue;
        };
        let original = original.start + shift..original.end + shift;
        let after = literal.partition_point(|l| l.end <= original.start);
        if literal.get(after).is_none_or(|l| l.start >= original.end) {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        }
    }
    ranges
}
