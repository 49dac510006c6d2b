//! Compiled modules on disk: one file per module, named by the hash of all that went into it.
//!
//! A file is complete or absent: written under another name and renamed. What does not read back as it was written is
//! compiled again; a folder that cannot be written is a line in the log.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Compiled, EntryReport};

/// First bytes of a file. Changes with the layout below and with whatever else makes old files wrong.
const MAGIC: &[u8; 16] = b"lathe-nvrtc v001";
const HASH: usize = 32;

/// What a module is made of, folded into one hash; each part is preceded by its length.
pub(crate) struct Key(blake3::Hasher);

impl Key {
    pub(crate) fn new() -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(MAGIC);
        Key(hasher)
    }

    pub(crate) fn part(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    pub(crate) fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// A folder of files.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Cache { folder }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.kernel"))
    }

    /// The module of a key, if it is there and whole.
    pub(crate) fn get(&self, key: &str) -> Option<Compiled> {
        let path = self.path(key);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "compiled kernel cannot be read");
                }
                return None;
            }
        };
        let compiled = decode(&bytes);
        if compiled.is_none() {
            tracing::warn!(path = %path.display(), "compiled kernel is damaged and will be compiled again");
        }
        compiled
    }

    /// Keeps a module, or says in the log why not.
    pub(crate) fn put(&self, key: &str, compiled: &Compiled) {
        let path = self.path(key);
        if let Err(error) = self.write(&path, &encode(compiled)) {
            tracing::warn!(path = %path.display(), %error, "compiled kernel is not kept");
        }
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        fs::create_dir_all(&self.folder)?;
        let unique = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_extension(format!("{}-{unique}.tmp", std::process::id()));
        let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            // The first error is the one worth telling.
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

/// `MAGIC`, blake3 of the rest, then: version, cubin, ptx, warnings as length (u64) and bytes; number of entries (u64);
/// each entry's name and its five numbers (u32). Little-endian.
fn encode(compiled: &Compiled) -> Vec<u8> {
    let mut body = Vec::with_capacity(compiled.cubin.len() + compiled.ptx.len() + 1024);
    let bytes = |bytes: &[u8], body: &mut Vec<u8>| {
        body.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        body.extend_from_slice(bytes);
    };
    bytes(compiled.version.as_bytes(), &mut body);
    bytes(&compiled.cubin, &mut body);
    bytes(compiled.ptx.as_bytes(), &mut body);
    bytes(compiled.warnings.as_bytes(), &mut body);
    body.extend_from_slice(&(compiled.entries.len() as u64).to_le_bytes());
    for entry in &compiled.entries {
        bytes(entry.name.as_bytes(), &mut body);
        for number in [
            entry.registers,
            entry.spill_store_bytes,
            entry.spill_load_bytes,
            entry.stack_bytes,
            entry.shared_bytes,
        ] {
            body.extend_from_slice(&number.to_le_bytes());
        }
    }
    let mut file = MAGIC.to_vec();
    file.extend_from_slice(blake3::hash(&body).as_bytes());
    file.extend_from_slice(&body);
    file
}

fn decode(file: &[u8]) -> Option<Compiled> {
    let (hash, body) = file.strip_prefix(MAGIC)?.split_at_checked(HASH)?;
    if blake3::hash(body).as_bytes() != hash {
        return None;
    }
    let mut rest = Rest(body);
    let mut compiled = Compiled {
        version: rest.text()?,
        cubin: rest.bytes()?.to_vec(),
        ptx: rest.text()?,
        warnings: rest.text()?,
        entries: Vec::new(),
    };
    for _ in 0..rest.u64()? {
        compiled.entries.push(EntryReport {
            name: rest.text()?,
            registers: rest.u32()?,
            spill_store_bytes: rest.u32()?,
            spill_load_bytes: rest.u32()?,
            stack_bytes: rest.u32()?,
            shared_bytes: rest.u32()?,
        });
    }
    rest.0.is_empty().then_some(compiled)
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u64()?).ok()?;
        self.take(len)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module() -> Compiled {
        let entry = EntryReport { name: "k".into(), registers: 40, shared_bytes: 256, ..Default::default() };
        Compiled {
            version: "13.0.88".into(),
            cubin: vec![0x7f, 1, 2],
            ptx: ".version 9.0\n".into(),
            warnings: String::new(),
            entries: vec![entry.clone(), EntryReport { name: "l".into(), spill_load_bytes: 8, ..entry }],
        }
    }

    #[test]
    fn modules_come_back_and_damage_is_seen() {
        let file = encode(&module());
        assert_eq!(decode(&file), Some(module()));
        for cut in 0..file.len() {
            assert_eq!(decode(&file[..cut]), None);
        }
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0x10;
            assert_eq!(decode(&damaged), None, "byte {at}");
        }
        assert_eq!(decode(&[&file[..], &[0]].concat()), None);
    }

    #[test]
    fn files_are_found_by_key_and_leave_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().join("deeper"));
        assert_eq!(cache.get("a"), None);
        cache.put("a", &module());
        cache.put("a", &module());
        assert_eq!(cache.get("a"), Some(module()));
        assert_eq!(cache.get("b"), None);
        assert_eq!(fs::read_dir(folder.path().join("deeper")).unwrap().count(), 1);
    }

    #[test]
    fn borders_between_parts_count() {
        let key = |parts: &[&str]| {
            let mut key = Key::new();
            parts.iter().for_each(|p| {
                key.part(p.as_bytes());
            });
            key.finish()
        };
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["ab"]), key(&["ab", ""]));
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
    }
}
