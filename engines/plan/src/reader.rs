//! Opens a plan: map, bounds, hashes of tables, meaning. Weights are read when they are used.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bincode::{Decode, Encode};
use memmap2::{Advice, Mmap, MmapMut, MmapOptions};

use crate::codec;
use crate::error::{Damage, PlanError};
use crate::header::{self, DATA_ALIGN, HEADER_SPACE, Header, REQUIRED, Section, TABLE_ALIGN, Tag};
use crate::older::Program1;
use crate::schema::{Blob, Layout, ModelCard, Module, Program, SelfTest, TextConfig, Weight};
use crate::verify;
use crate::writer::hash_of_hashes;

/// A plan whose structure and meaning were checked; its weights lie in the file's map, 64-byte aligned.
#[derive(Debug)]
pub struct Plan {
    path: PathBuf,
    map: Mmap,
    file: Option<(File, Metadata)>,
    header: Header,
    card: ModelCard,
    programs: Vec<Program>,
    weights: Vec<Weight>,
    /// Start of `WDAT` in the map.
    data: usize,
    data_bytes: u64,
    /// `CODE` in the map; empty where there is none.
    code: Range<usize>,
    text: TextConfig,
    tokenizer: Option<Range<usize>>,
    self_test: Option<SelfTest>,
}

impl Plan {
    /// Maps and checks the plan at `path`. Reads the tables, not the weights: see `verify_weights`.
    pub fn open(path: &Path) -> Result<Self, PlanError> {
        let io = |action, source| PlanError::Io { path: path.to_path_buf(), action, source };
        let file = File::open(path).map_err(|e| io("cannot open", e))?;
        let meta = file.metadata().map_err(|e| io("cannot read its size", e))?;
        if meta.is_dir() {
            return Err(io("cannot open", io::Error::from(io::ErrorKind::IsADirectory)));
        }
        if meta.len() == 0 {
            return Err(PlanError::Foreign { path: path.to_path_buf(), what: "an empty file" });
        }
        // SAFETY: the map is only read, as plain bytes that were checked or can hold any value. A file that another
        // process cuts short is met by `truncation` and `still_whole`.
        let map = unsafe { MmapOptions::new().map(&file) }.map_err(|e| io("cannot map", e))?;
        Self::check(path, map, Some((file, meta)))
    }

    /// Checks a plan in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, PlanError> {
        // A copy in an anonymous map has the alignment that a file's map has.
        let path = Path::new("plan in memory");
        let io = |source| PlanError::Io { path: path.to_path_buf(), action: "cannot map", source };
        let mut map = MmapMut::map_anon(bytes.len()).map_err(io)?;
        map.copy_from_slice(&bytes);
        drop(bytes);
        Self::check(path, map.make_read_only().map_err(io)?, None)
    }

    fn check(path: &Path, map: Mmap, file: Option<(File, Metadata)>) -> Result<Self, PlanError> {
        let damaged = |fault| PlanError::Damaged { path: path.to_path_buf(), fault };
        let header = Header::parse(path, &map)?;
        let directory = Directory::check(&header, map.len() as u64).map_err(damaged)?;

        let card: ModelCard = directory.table(&map, header::CARD, "CARD").map_err(damaged)?;
        let programs = directory.programs(&map).map_err(damaged)?;
        let weights: Vec<Weight> = directory.table(&map, header::WTAB, "WTAB").map_err(damaged)?;
        let text: TextConfig = directory.table(&map, header::TEXT, "TEXT").map_err(damaged)?;
        let self_test = match directory.find(header::TEST) {
            Some(_) => Some(directory.table::<SelfTest>(&map, header::TEST, "TEST").map_err(damaged)?),
            None => None,
        };
        let tokenizer = match directory.find(header::TOKN) {
            Some(section) => {
                hashed(&map, section, "TOKN").map_err(damaged)?;
                Some(range(section))
            }
            None => None,
        };
        let code = match directory.find(header::CODE) {
            Some(section) => {
                hashed(&map, section, "CODE").map_err(damaged)?;
                range(section)
            }
            None => 0..0,
        };
        let data = directory.need(header::WDAT, "WDAT").map_err(damaged)?;
        if hash_of_hashes(&weights) != data.hash {
            return Err(damaged(Damage::SectionHash { tag: "WDAT" }));
        }
        if header.producer != card.producer {
            return Err(damaged(Damage::HeaderCard { field: "producer" }));
        }
        if !header.flags.is_empty() && header.flags != header::shell_line(&card.flags) {
            return Err(damaged(Damage::HeaderCard { field: "flags" }));
        }
        let parts = verify::Parts {
            card: &card,
            programs: &programs,
            weights: &weights,
            data_bytes: data.length,
            code: &map[code.clone()],
            text: &text,
            self_test: self_test.as_ref(),
        };
        verify::verify(&parts)
            .map_err(|fault| PlanError::Invalid { path: path.to_path_buf(), fault: Box::new(fault) })?;
        let (data, data_bytes) = (data.offset as usize, data.length);
        Ok(Plan {
            path: path.to_path_buf(),
            map,
            file,
            header,
            card,
            programs,
            weights,
            data,
            data_bytes,
            code,
            text,
            tokenizer,
            self_test,
        })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version, producer, flags and directory.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What the model is.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// All programs.
    pub fn programs(&self) -> &[Program] {
        &self.programs
    }

    /// The program of this name for one rank of one.
    pub fn program(&self, name: &str) -> Option<&Program> {
        self.programs.iter().find(|p| p.name == name && p.n_ranks == 1)
    }

    /// The weight table; indices are those of `Place::Weight`.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// Index of a weight by name and layout.
    pub fn find_weight(&self, name: &str, layout: Layout) -> Option<usize> {
        self.weights.iter().position(|w| w.name == name && w.layout == layout)
    }

    /// The bytes of weight `index`, 64-byte aligned. Panics where a slice would: `index` is out of range.
    pub fn weight_bytes(&self, index: usize) -> &[u8] {
        let weight = &self.weights[index];
        let start = self.data + weight.offset as usize;
        &self.map[start..start + weight.bytes as usize]
    }

    /// Bytes of all weights with the padding between them.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// The bytes of a blob of this plan, 64-byte aligned. Panics where a slice would: the blob is another plan's.
    pub fn code(&self, blob: &Blob) -> &[u8] {
        &self.code_section()[blob.offset as usize..][..blob.bytes as usize]
    }

    /// All of section `CODE`; empty where no program has modules.
    pub fn code_section(&self) -> &[u8] {
        &self.map[self.code.clone()]
    }

    /// Machine code of a module of this plan, if it has any.
    pub fn module_cubin(&self, module: &Module) -> Option<&[u8]> {
        module.cubin.as_ref().map(|blob| self.code(blob))
    }

    /// PTX of a module of this plan, if it has any.
    pub fn module_ptx(&self, module: &Module) -> Option<&str> {
        // The verifier saw that it is text.
        module.ptx.as_ref().and_then(|blob| std::str::from_utf8(self.code(blob)).ok())
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Chat templates and special tokens.
    pub fn text(&self) -> &TextConfig {
        &self.text
    }

    /// The bytes of tokenizer.json, if the plan has one.
    pub fn tokenizer_json(&self) -> Option<&[u8]> {
        self.tokenizer.clone().map(|r| &self.map[r])
    }

    /// The question with its answer, if the plan has one.
    pub fn self_test(&self) -> Option<&SelfTest> {
        self.self_test.as_ref()
    }

    /// Reads every weight and compares its hash; `progress` is told the bytes done after each weight.
    pub fn verify_weights(&self, mut progress: impl FnMut(u64)) -> Result<(), PlanError> {
        let mut done = 0;
        for (index, weight) in self.weights.iter().enumerate() {
            if blake3::hash(self.weight_bytes(index)) != weight.hash {
                let fault = Damage::WeightHash { name: weight.name.clone() };
                return Err(PlanError::Damaged { path: self.path.clone(), fault });
            }
            done += weight.bytes;
            progress(done);
        }
        Ok(())
    }

    /// Asks the system to start reading the weights, and to keep and map them in large pages. Only a hint: a refusal changes
    /// nothing but speed.
    pub fn prefetch_weights(&self) {
        for advice in [Advice::HugePage, Advice::WillNeed] {
            let _ = self.map.advise_range(advice, self.data, self.data_bytes as usize);
        }
    }

    /// Looks at these bytes of the weights, so that they are read and mapped before a step needs them.
    ///
    /// # Panics
    /// When they reach past the weights.
    pub fn touch_weights(&self, bytes: std::ops::Range<usize>) {
        let weights = &self.map[self.data..self.data + self.data_bytes as usize];
        for byte in weights[bytes].iter().step_by(FAULT_AROUND) {
            std::hint::black_box(*byte);
        }
    }

    /// Whether the mapped file still has the bytes that it had. Two system calls' worth of work: call it every second.
    pub fn still_whole(&self) -> Result<(), PlanError> {
        let Some((file, before)) = &self.file else { return Ok(()) };
        let io = |source| PlanError::Io { path: self.path.clone(), action: "cannot read its size", source };
        let now = file.metadata().map_err(io)?;
        if now.len() < before.len() {
            return Err(PlanError::Truncated { path: self.path.clone(), had: before.len(), has: now.len() });
        }
        // Another file renamed over this one does not touch the mapped one; writing into it does.
        if (now.mtime(), now.mtime_nsec(), now.len()) != (before.mtime(), before.mtime_nsec(), before.len()) {
            return Err(PlanError::Modified { path: self.path.clone() });
        }
        Ok(())
    }
}

/// Bytes that Linux maps at a fault of a file whose pages are in memory, unless they are large ones.
const FAULT_AROUND: usize = 64 << 10;

/// A directory whose sections lie in the file, apart from each other.
struct Directory<'a> {
    sections: &'a [Section],
}

impl<'a> Directory<'a> {
    fn check(header: &'a Header, file_bytes: u64) -> Result<Self, Damage> {
        let mut order: Vec<&Section> = header.sections.iter().collect();
        order.sort_by_key(|s| (s.offset, s.length));
        let mut end = HEADER_SPACE.min(file_bytes);
        for s in order {
            let tag = s.name();
            let known = header::known(s.tag, s.version);
            if s.flags & !REQUIRED != 0 {
                return Err(Damage::SectionFlags { tag, flags: s.flags });
            }
            if !known && s.flags & REQUIRED != 0 {
                return Err(Damage::SectionUnknown { tag, version: s.version });
            }
            let align = if s.tag == header::WDAT { DATA_ALIGN } else { TABLE_ALIGN };
            if !s.offset.is_multiple_of(align) {
                return Err(Damage::SectionAlignment { tag, offset: s.offset, align });
            }
            if s.offset < end {
                return Err(Damage::SectionOverlap { tag, offset: s.offset });
            }
            end = s.offset.saturating_add(s.length);
            if end > file_bytes {
                return Err(Damage::SectionCut { tag, need: end, have: file_bytes });
            }
        }
        if end < file_bytes {
            return Err(Damage::Trailing { extra: file_bytes - end });
        }
        for (i, s) in header.sections.iter().enumerate() {
            if header.sections[..i].iter().any(|other| other.tag == s.tag) {
                return Err(Damage::SectionTwice { tag: s.name() });
            }
        }
        Ok(Directory { sections: &header.sections })
    }

    /// The section, if it is there in a version that is known.
    fn find(&self, tag: Tag) -> Option<&'a Section> {
        self.sections.iter().find(|s| s.tag == tag && header::known(s.tag, s.version))
    }

    fn need(&self, tag: Tag, name: &'static str) -> Result<&'a Section, Damage> {
        self.find(tag).ok_or(Damage::SectionMissing { tag: name })
    }

    fn programs(&self, map: &[u8]) -> Result<Vec<Program>, Damage> {
        if self.need(header::PROG, "PROG")?.version == 1 {
            let older: Vec<Program1> = self.table(map, header::PROG, "PROG")?;
            return Ok(older.into_iter().map(Program::from).collect());
        }
        self.table(map, header::PROG, "PROG")
    }

    fn table<T: Decode<()> + Encode>(&self, map: &[u8], tag: Tag, name: &'static str) -> Result<T, Damage> {
        let bytes = hashed(map, self.need(tag, name)?, name)?;
        codec::decode(bytes).map_err(|fault| Damage::Table { tag: name, fault })
    }
}

/// The section's place in a map for which `Directory::check` passed.
fn range(section: &Section) -> Range<usize> {
    section.offset as usize..(section.offset + section.length) as usize
}

fn hashed<'m>(map: &'m [u8], section: &Section, tag: &'static str) -> Result<&'m [u8], Damage> {
    let bytes = &map[range(section)];
    if blake3::hash(bytes) != section.hash {
        return Err(Damage::SectionHash { tag });
    }
    Ok(bytes)
}
