//! The header: who wrote the file, in which format, and where its sections lie.
//!
//! Everything up to and including the flags is the same in every format version, so that any build can say how to
//! make a plan that it reads.

use std::path::Path;

use crate::error::{Damage, PlanError};
use crate::foreign;

/// First bytes of every plan. The last two catch transfers that rewrite line ends, the first those that drop bit 7.
pub const MAGIC: [u8; 8] = *b"\x89LATHE\r\n";
/// Format version that this build writes: major, minor. It reads this minor and the one before.
pub const VERSION: (u16, u16) = (1, 1);
/// Bytes before the first section; the header fits into them.
pub const HEADER_SPACE: u64 = 4096;
/// Alignment of `WDAT` in the file: a page, so that a map of the file aligns weights for any kernel.
pub const DATA_ALIGN: u64 = 4096;
/// Alignment of the other sections.
pub const TABLE_ALIGN: u64 = 64;
/// Bytes of a directory entry.
pub const ENTRY_BYTES: usize = 56;
/// Bit of `Section::flags`: a reader that does not know the section must refuse the plan.
pub const REQUIRED: u16 = 1;

const HASH_BYTES: usize = 32;
/// Magic, version, length, two empty strings, section count, hash.
const LEAST_BYTES: usize = 8 + 4 + 4 + 2 + 2 + 2 + HASH_BYTES;

/// Four letters that name a section.
pub type Tag = [u8; 4];
/// One `ModelCard`.
pub const CARD: Tag = *b"CARD";
/// All `Program`s.
pub const PROG: Tag = *b"PROG";
/// All `Weight`s.
pub const WTAB: Tag = *b"WTAB";
/// The weights' bytes.
pub const WDAT: Tag = *b"WDAT";
/// One `TextConfig`.
pub const TEXT: Tag = *b"TEXT";
/// The bytes of tokenizer.json.
pub const TOKN: Tag = *b"TOKN";
/// One `SelfTest`.
pub const TEST: Tag = *b"TEST";
/// Device code.
pub const CODE: Tag = *b"CODE";

/// Version that this build writes of a section's content. `PROG` version 1 is that of format 1.0, which it still reads.
pub const fn version_of(tag: Tag) -> u16 {
    match &tag {
        b"PROG" => 2,
        _ => 1,
    }
}

/// True if this build knows the section in this version.
pub fn known(tag: Tag, version: u16) -> bool {
    [CARD, PROG, WTAB, WDAT, TEXT, TOKN, TEST, CODE].contains(&tag)
        && (1..=version_of(tag)).contains(&version)
}

/// An entry of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it is.
    pub tag: Tag,
    /// Version of its content: `version_of` its tag, or one before it.
    pub version: u16,
    /// `REQUIRED` or 0.
    pub flags: u16,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// BLAKE3 of the bytes; for `WDAT`: of the weights' hashes in the order of `WTAB`.
    pub hash: [u8; 32],
}

impl Section {
    /// The tag for people.
    pub fn name(&self) -> String {
        self.tag.escape_ascii().to_string()
    }
}

/// The header's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Format version: major, minor.
    pub version: (u16, u16),
    /// The compiler that wrote the plan.
    pub producer: String,
    /// Compile flags as one shell line; empty where they did not fit.
    pub flags: String,
    /// Directory in file order.
    pub sections: Vec<Section>,
}

impl Header {
    /// The header's bytes with their hash, at most `HEADER_SPACE`. Flags that do not fit are left out.
    pub fn encode(&self) -> Result<Vec<u8>, PlanError> {
        let fixed = LEAST_BYTES + self.sections.len() * ENTRY_BYTES + self.producer.len();
        let room = (HEADER_SPACE as usize)
            .checked_sub(fixed)
            .ok_or_else(|| PlanError::Writer { what: format!("a header of {fixed} bytes does not fit") })?;
        let flags = if self.flags.len() <= room { self.flags.as_str() } else { "" };
        let total = fixed + flags.len();

        let mut out = Vec::with_capacity(total);
        out.extend(MAGIC);
        out.extend(self.version.0.to_le_bytes());
        out.extend(self.version.1.to_le_bytes());
        out.extend((total as u32).to_le_bytes());
        for text in [self.producer.as_str(), flags] {
            out.extend((text.len() as u16).to_le_bytes());
            out.extend(text.as_bytes());
        }
        out.extend((self.sections.len() as u16).to_le_bytes());
        for s in &self.sections {
            out.extend(s.tag);
            out.extend(s.version.to_le_bytes());
            out.extend(s.flags.to_le_bytes());
            out.extend(s.offset.to_le_bytes());
            out.extend(s.length.to_le_bytes());
            out.extend(s.hash);
        }
        let hash = blake3::hash(&out);
        out.extend(hash.as_bytes());
        Ok(out)
    }

    /// The header at the start of `file`, its hash checked; sections are not yet checked against the file.
    /// `path` is only named in errors.
    pub fn parse(path: &Path, file: &[u8]) -> Result<Header, PlanError> {
        let damaged = |fault| PlanError::Damaged { path: path.to_path_buf(), fault };
        if !file.starts_with(&MAGIC) {
            return Err(PlanError::Foreign { path: path.to_path_buf(), what: foreign::describe(file) });
        }
        let cut = |need: usize| damaged(Damage::HeaderCut { need: need as u64, have: file.len() as u64 });
        let mut at = Cursor { bytes: file, pos: MAGIC.len() };
        let version = (at.u16().map_err(cut)?, at.u16().map_err(cut)?);
        let total = at.u32().map_err(cut)? as usize;
        let producer = at.text().map_err(cut)?;
        let flags = at.text().map_err(cut)?;
        if !readable(version) {
            let producer = String::from_utf8_lossy(producer).chars().filter(|c| !c.is_control()).collect();
            let flags =
                String::from_utf8_lossy(flags).chars().filter(|c| !c.is_control()).collect::<String>();
            return Err(PlanError::Version {
                path: path.to_path_buf(),
                found: version,
                reads: reads(),
                producer,
                command: recompile_command(path, &flags),
            });
        }
        if !(LEAST_BYTES..=HEADER_SPACE as usize).contains(&total) {
            return Err(damaged(Damage::HeaderLength {
                bytes: total as u64,
                least: LEAST_BYTES as u64,
                most: HEADER_SPACE,
            }));
        }
        if file.len() < total {
            return Err(cut(total));
        }
        let (content, hash) = file[..total].split_at(total - HASH_BYTES);
        if blake3::hash(content).as_bytes() != hash {
            return Err(damaged(Damage::HeaderHash));
        }
        let text = |bytes: &[u8], field| {
            String::from_utf8(bytes.to_vec()).map_err(|_| damaged(Damage::HeaderText { field }))
        };
        let (producer, flags) = (text(producer, "producer")?, text(flags, "flags")?);

        // Fields that reach past the header are a wrong length, whatever follows in the file.
        let short = |_| {
            damaged(Damage::HeaderLength {
                bytes: total as u64,
                least: LEAST_BYTES as u64,
                most: HEADER_SPACE,
            })
        };
        let mut at = Cursor { bytes: content, pos: at.pos };
        let count = at.u16().map_err(short)? as usize;
        if at.pos + count * ENTRY_BYTES != content.len() {
            return Err(short(0));
        }
        let mut sections = Vec::with_capacity(count);
        for _ in 0..count {
            sections.push(Section {
                tag: at.array().map_err(short)?,
                version: at.u16().map_err(short)?,
                flags: at.u16().map_err(short)?,
                offset: u64::from_le_bytes(at.array().map_err(short)?),
                length: u64::from_le_bytes(at.array().map_err(short)?),
                hash: at.array().map_err(short)?,
            });
        }
        Ok(Header { version, producer, flags, sections })
    }
}

/// True for the minor version of this build and the one before it.
pub fn readable(version: (u16, u16)) -> bool {
    version.0 == VERSION.0 && version.1 <= VERSION.1 && version.1 + 1 >= VERSION.1
}

fn reads() -> String {
    match VERSION.1 {
        0 => format!("{}.0", VERSION.0),
        minor => format!("{}.{} and {0}.{minor}", VERSION.0, minor - 1),
    }
}

/// The command that makes a plan for this build from the same checkpoint.
pub fn recompile_command(path: &Path, flags: &str) -> String {
    let name = path.file_name().map_or_else(|| "engine.plan".into(), |n| n.to_string_lossy());
    let flags = if flags.is_empty() { String::new() } else { format!("{flags} ") };
    format!("compile --model DIR {flags}-o {}", shell_word(&name))
}

/// `flags` as one line that a POSIX shell splits into the same words.
pub fn shell_line(flags: &[String]) -> String {
    flags.iter().map(|f| shell_word(f)).collect::<Vec<_>>().join(" ")
}

fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Reads ascending fields; an error is the number of bytes that the field needs.
struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], usize> {
        let end = self.pos + n;
        let field = self.bytes.get(self.pos..end).ok_or(end)?;
        self.pos = end;
        Ok(field)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], usize> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u16(&mut self) -> Result<u16, usize> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, usize> {
        self.array().map(u32::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a [u8], usize> {
        let length = self.u16()?;
        self.take(length as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            version: VERSION,
            producer: "lathe 0.1.0".into(),
            flags: shell_line(&["--max-batch".into(), "32".into(), "it's".into()]),
            sections: vec![Section {
                tag: WDAT,
                version: 1,
                flags: REQUIRED,
                offset: 4096,
                length: 64,
                hash: [7; 32],
            }],
        }
    }

    fn fault(bytes: &[u8]) -> Damage {
        match Header::parse(Path::new("x.plan"), bytes) {
            Err(PlanError::Damaged { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    }

    fn rehash(bytes: &mut [u8]) {
        let content = bytes.len() - HASH_BYTES;
        let hash = blake3::hash(&bytes[..content]);
        bytes[content..].copy_from_slice(hash.as_bytes());
    }

    #[test]
    fn round_trips() {
        let bytes = header().encode().unwrap();
        assert_eq!(Header::parse(Path::new("x.plan"), &bytes).unwrap(), header());
        assert_eq!(header().flags, r"--max-batch 32 'it'\''s'");
    }

    #[test]
    fn long_flags_are_left_out() {
        let h = Header { flags: "x".repeat(5000), ..header() };
        let bytes = h.encode().unwrap();
        assert!(bytes.len() as u64 <= HEADER_SPACE);
        assert_eq!(Header::parse(Path::new("x"), &bytes).unwrap().flags, "");
        assert!(Header { producer: "x".repeat(5000), ..header() }.encode().is_err());
    }

    #[test]
    fn every_cut_is_named() {
        let bytes = header().encode().unwrap();
        for n in MAGIC.len()..bytes.len() {
            assert!(matches!(fault(&bytes[..n]), Damage::HeaderCut { have, .. } if have == n as u64), "{n}");
        }
        assert!(matches!(
            Header::parse(Path::new("x"), &bytes[..5]),
            Err(PlanError::Foreign { what: "a file of an unknown kind", .. })
        ));
    }

    #[test]
    fn each_way_of_being_wrong() {
        let good = header().encode().unwrap();
        let mut bytes = good.clone();
        bytes[60] ^= 1;
        assert_eq!(fault(&bytes), Damage::HeaderHash);

        let mut bytes = good.clone();
        bytes[12..16].copy_from_slice(&5000u32.to_le_bytes());
        assert!(matches!(fault(&bytes), Damage::HeaderLength { bytes: 5000, .. }));

        let mut bytes = good.clone();
        bytes[18] = 0xff;
        rehash(&mut bytes);
        assert_eq!(fault(&bytes), Damage::HeaderText { field: "producer" });

        let mut bytes = good.clone();
        let count = good.len() - HASH_BYTES - ENTRY_BYTES - 2;
        bytes[count] = 2;
        rehash(&mut bytes);
        assert!(matches!(fault(&bytes), Damage::HeaderLength { .. }));
    }

    #[test]
    fn another_version_prints_the_recompile_command() {
        let mut bytes = header().encode().unwrap();
        bytes[8] = 2;
        let e = Header::parse(Path::new("/models/my plan"), &bytes).unwrap_err();
        assert_eq!(
            e.to_string(),
            "/models/my plan: plan format 2.1 (written by lathe 0.1.0) cannot be read by this build, which reads \
             1.0 and 1.1; recompile with `compile --model DIR --max-batch 32 'it'\\''s' -o 'my plan'`"
        );
    }
}
