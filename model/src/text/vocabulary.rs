//! The bytes that each token stands for.

use std::collections::HashMap;

use tokenizers::{DecoderWrapper, Tokenizer};

use super::error::TextError;

/// Bytes of all tokens, one after the other.
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Token `i` has `bytes[starts[i]..starts[i + 1]]`.
    starts: Vec<u32>,
    control: Vec<bool>,
}

/// How a tokenizer writes bytes in the names of its tokens.
enum Spelling {
    /// Each byte is a printable character (GPT-2).
    ByteLevel(HashMap<char, u8>),
    /// `▁` is a space, `<0x0A>` a byte (SentencePiece).
    Metaspace,
}

// === impl Vocabulary ===

impl Vocabulary {
    pub fn new(tokenizer: &Tokenizer, vocab_tokens: usize) -> Result<Self, TextError> {
        let added = tokenizer.get_added_tokens_decoder();
        let ids = tokenizer.get_vocab(true);
        if let Some(token) = ids.values().copied().find(|token| *token as usize >= vocab_tokens) {
            return Err(TextError::Vocabulary { token, vocab_tokens });
        }
        let spelling = Spelling::of(tokenizer.get_decoder())?;
        let mut names = vec![None; vocab_tokens];
        for (name, token) in ids {
            if let Some(twin) = names[token as usize].replace(name) {
                // A stored tokenizer keeps one of them, and not always the same.
                let reason = format!("token {token} has two names, one of them `{twin}`");
                return Err(TextError::Tokenizer { reason });
            }
        }
        let mut this = Self { bytes: Vec::new(), starts: vec![0], control: vec![false; vocab_tokens] };
        for (token, name) in (0..).zip(names) {
            match added.get(&token) {
                Some(added) => {
                    this.bytes.extend(added.content.as_bytes());
                    this.control[token as usize] = added.special;
                }
                None => spelling.read(name.as_deref().unwrap_or_default(), &mut this.bytes),
            }
            let end = u32::try_from(this.bytes.len());
            this.starts.push(end.map_err(|_| TextError::Tokenizer { reason: "too many bytes".to_owned() })?);
        }
        Ok(this)
    }

    pub fn len(&self) -> usize {
        self.control.len()
    }

    pub fn bytes(&self, token: u32) -> &[u8] {
        match self.starts.get(token as usize..token as usize + 2) {
            Some([start, end]) => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
    }

    pub fn is_control(&self, token: u32) -> bool {
        self.control.get(token as usize).copied().unwrap_or(false)
    }

    /// How all control tokens are spelled.
    pub fn control_names(&self) -> impl Iterator<Item = String> {
        let control = (0..).zip(&self.control).filter(|(_, control)| **control);
        control.map(|(token, _)| String::from_utf8_lossy(self.bytes(token)).into_owned())
    }
}

// === impl Spelling ===

impl Spelling {
    fn of(decoder: Option<&DecoderWrapper>) -> Result<Self, TextError> {
        match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => Ok(Self::ByteLevel(byte_characters())),
            Some(DecoderWrapper::Metaspace(_) | DecoderWrapper::Replace(_)) => Ok(Self::Metaspace),
            Some(DecoderWrapper::Sequence(decoders)) => {
                let known = decoders.get_decoders().iter().find_map(|decoder| Self::of(Some(decoder)).ok());
                known.ok_or_else(unknown_decoder)
            }
            _ => Err(unknown_decoder()),
        }
    }

    /// Appends the bytes that a token of this name stands for.
    fn read(&self, name: &str, bytes: &mut Vec<u8>) {
        let hex =
            name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
        match (self, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (Self::Metaspace, Some(byte)) => bytes.push(byte),
            (Self::Metaspace, None) => bytes.extend(name.replace('▁', " ").as_bytes()),
            (Self::ByteLevel(characters), _) => {
                for character in name.chars() {
                    match characters.get(&character) {
                        Some(byte) => bytes.push(*byte),
                        None => bytes.extend(character.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
        }
    }
}

fn unknown_decoder() -> TextError {
    TextError::Tokenizer { reason: "its decoder is neither byte-level nor metaspace".to_owned() }
}

/// GPT-2's characters for bytes: printable Latin-1 characters stand for
/// themselves, the other bytes for characters from 256 on, in order.
fn byte_characters() -> HashMap<char, u8> {
    let mut others = (256..).filter_map(char::from_u32);
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    (0..=u8::MAX)
        .filter_map(|byte| {
            let character = if printable(byte) { Some(char::from(byte)) } else { others.next() };
            character.map(|character| (character, byte))
        })
        .collect()
}

/// The inverse: the name of the token of one byte.
pub fn byte_name(byte: u8) -> Option<char> {
    byte_characters().into_iter().find_map(|(character, of)| (of == byte).then_some(character))
}
