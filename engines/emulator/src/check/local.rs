//! Which bytes of the threads' own memory are defined.

/// One bit per byte and thread, grown where it is written.
#[derive(Debug, Default)]
pub struct Local {
    defined: Vec<Vec<u64>>,
}

impl Local {
    /// Bits of the undefined among `len` (at most 32) bytes from `at` on.
    pub fn undefined(&self, thread: usize, at: u64, len: u32) -> u32 {
        let bits = self.defined.get(thread);
        (0..len).fold(0, |undefined, b| {
            let byte = at + u64::from(b);
            let word = bits.and_then(|bits| bits.get((byte / 64) as usize)).copied().unwrap_or(0);
            undefined | u32::from(word >> (byte % 64) & 1 == 0) << b
        })
    }

    /// Writes `len` bytes, of which `undefined` are undefined.
    pub fn write(&mut self, thread: usize, at: u64, len: u32, undefined: u32) {
        if self.defined.len() <= thread {
            self.defined.resize(thread + 1, Vec::new());
        }
        let bits = &mut self.defined[thread];
        let words = ((at + u64::from(len)).div_ceil(64)) as usize;
        if bits.len() < words {
            bits.resize(words, 0);
        }
        for b in 0..len {
            let byte = at + u64::from(b);
            let (word, bit) = ((byte / 64) as usize, 1u64 << (byte % 64));
            if undefined >> b & 1 == 1 {
                bits[word] &= !bit;
            } else {
                bits[word] |= bit;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_apart() {
        let mut local = Local::default();
        assert_eq!(local.undefined(3, 62, 4), 0b1111);
        local.write(3, 62, 4, 0b0010);
        assert_eq!(local.undefined(3, 62, 4), 0b0010);
        assert_eq!(local.undefined(3, 60, 8), 0b1100_1011);
        assert_eq!(local.undefined(2, 62, 4), 0b1111);
        local.write(3, 63, 1, 0);
        assert_eq!(local.undefined(3, 62, 4), 0);
    }
}
