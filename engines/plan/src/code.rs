//! Section `CODE` while a plan is made: blobs one after another, equal bytes once.

use std::collections::HashMap;

use crate::schema::Blob;

/// Alignment of each blob in `CODE`.
pub const CODE_ALIGN: u64 = 64;

/// Collects blobs in the order in which they are added.
#[derive(Clone, Debug, Default)]
pub struct CodeWriter {
    bytes: Vec<u8>,
    known: HashMap<[u8; 32], Blob>,
}

impl CodeWriter {
    /// Stores `bytes`, unless the same bytes are there already, and says where they lie.
    pub fn add(&mut self, bytes: &[u8]) -> Blob {
        let hash = *blake3::hash(bytes).as_bytes();
        *self.known.entry(hash).or_insert_with(|| {
            let offset = self.bytes.len().next_multiple_of(CODE_ALIGN as usize);
            self.bytes.resize(offset, 0);
            self.bytes.extend(bytes);
            Blob { offset: offset as u64, bytes: bytes.len() as u64, hash }
        })
    }

    /// The section: all blobs, zeros between them.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_are_stored_once() {
        let mut code = CodeWriter::default();
        let first = code.add(b"abc");
        let second = code.add(&[7; 65]);
        assert_eq!((first.offset, first.bytes, second.offset, second.bytes), (0, 3, 64, 65));
        assert_eq!(code.add(b"abc"), first);
        assert_eq!(first.hash, *blake3::hash(b"abc").as_bytes());
        let section = code.finish();
        assert_eq!(section.len(), 129);
        assert_eq!((&section[..4], &section[64..66]), (&b"abc\0"[..], &[7u8, 7][..]));
    }
}
