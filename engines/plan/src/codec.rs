//! Values to bytes and back: the only file that names bincode (unmaintained, RUSTSEC-2025-0141, hence behind this seam).
//!
//! Little endian, variable-length integers, enum variants by index. A value has exactly one encoding: what decodes
//! but would be written differently is refused, and so are bytes after the value.

use bincode::de::read::Reader;
use bincode::de::{Decoder, DecoderImpl};
use bincode::enc::write::Writer;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode, config};

/// Bytes that lists may claim before their elements are read, per encoded byte; beyond it a length is hostile.
/// Lists of real tables claim at most 5 (buffers: 80 bytes from 16).
const EXPANSION: usize = 8;
/// Bytes that may be claimed whatever the size: a table of one element is larger in memory than encoded.
const FLOOR: usize = 2048;
/// The decoder's own limit is a constant of its type; smaller ones are made by claiming the rest beforehand.
const LIMIT: usize = 1 << 34;

/// Why bytes are not a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The value goes on after the last byte.
    #[error("the value goes on after the last byte")]
    End,
    /// A length asks for more memory than these bytes can fill.
    #[error("a length asks for more memory than {bytes} bytes can fill")]
    Length {
        /// Bytes that were given.
        bytes: usize,
    },
    /// The value ends before the bytes do.
    #[error("{extra} bytes follow the value")]
    Trailing {
        /// Bytes after the value.
        extra: usize,
    },
    /// The value would be written differently.
    #[error("the value is not in its one encoding")]
    NotCanonical,
    /// A variant, flag or string that does not exist.
    #[error("{reason}")]
    Value {
        /// What the decoder saw.
        reason: String,
    },
}

/// The one encoding of `value`.
pub fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::encode_to_vec(value, base()).map_err(|e| CodecError::Value { reason: e.to_string() })
}

/// The value that `bytes`, all of them, encode. Allocates at most in proportion to `bytes`, whatever they say.
pub fn decode<T: Decode<()> + Encode>(bytes: &[u8]) -> Result<T, CodecError> {
    let most = bytes.len().saturating_mul(EXPANSION).saturating_add(FLOOR).min(LIMIT);
    let mut decoder = DecoderImpl::new(Rest(bytes), base().with_limit::<LIMIT>(), ());
    let claimed = decoder.claim_bytes_read(LIMIT - most);
    let value = claimed.and_then(|()| T::decode(&mut decoder)).map_err(|e| match e {
        DecodeError::UnexpectedEnd { .. } => CodecError::End,
        DecodeError::LimitExceeded => CodecError::Length { bytes: bytes.len() },
        other => CodecError::Value { reason: other.to_string() },
    })?;
    let extra = decoder.reader().0.len();
    if extra > 0 {
        return Err(CodecError::Trailing { extra });
    }
    let mut compare = Compare { expected: bytes };
    match bincode::encode_into_writer(&value, &mut compare, base()) {
        Ok(()) if compare.expected.is_empty() => Ok(value),
        _ => Err(CodecError::NotCanonical),
    }
}

fn base() -> config::Configuration {
    config::standard()
}

/// Bytes that are not yet decoded.
struct Rest<'a>(&'a [u8]);

impl Reader for Rest<'_> {
    fn read(&mut self, out: &mut [u8]) -> Result<(), DecodeError> {
        let missing = out.len().saturating_sub(self.0.len());
        let (head, tail) =
            self.0.split_at_checked(out.len()).ok_or(DecodeError::UnexpectedEnd { additional: missing })?;
        out.copy_from_slice(head);
        self.0 = tail;
        Ok(())
    }

    fn peek_read(&mut self, n: usize) -> Option<&[u8]> {
        self.0.get(..n)
    }

    fn consume(&mut self, n: usize) {
        self.0 = self.0.get(n..).unwrap_or_default();
    }
}

/// Takes what an encoder writes and compares it, so that the check allocates nothing.
struct Compare<'a> {
    expected: &'a [u8],
}

impl Writer for Compare<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        match self.expected.strip_prefix(bytes) {
            Some(rest) => {
                self.expected = rest;
                Ok(())
            }
            None => Err(EncodeError::Other("differs")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_fixed() {
        let value = (7u32, 300u64, -1i32, "ab".to_string(), vec![1.0f32], Some([9u8; 2]));
        let bytes = encode(&value).unwrap();
        assert_eq!(
            bytes,
            [7, 251, 44, 1, 1, 2, b'a', b'b', 1, 0, 0, 0x80, 0x3f, 1, 9, 9],
            "the encoding of every plan on disk"
        );
        assert_eq!(decode::<(u32, u64, i32, String, Vec<f32>, Option<[u8; 2]>)>(&bytes).unwrap(), value);
    }

    #[test]
    fn each_way_of_being_wrong() {
        assert_eq!(decode::<u32>(&[]), Err(CodecError::End));
        assert_eq!(decode::<u32>(&[1, 2]), Err(CodecError::Trailing { extra: 1 }));
        assert_eq!(decode::<u32>(&[251, 5, 0]), Err(CodecError::NotCanonical));
        assert!(matches!(decode::<Option<u8>>(&[2, 0]), Err(CodecError::Value { .. })));
        assert!(matches!(decode::<String>(&[1, 0xff]), Err(CodecError::Value { .. })));
        let huge = encode(&(u64::MAX / 2)).unwrap();
        assert_eq!(decode::<Vec<u64>>(&huge), Err(CodecError::Length { bytes: 9 }));
        assert_eq!(decode::<String>(&huge), Err(CodecError::Length { bytes: 9 }));
    }
}
