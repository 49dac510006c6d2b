//! Writes a plan: weights first, by several threads at offsets that their sizes fix, then the tables.
//!
//! The file appears under its name only when it is whole; the same weights and tables give the same bytes whatever
//! the number of threads and the order in which they write.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bincode::Encode;
use lathe_numerics::DType;

use crate::blocks::Blocks;
use crate::codec;
use crate::error::PlanError;
use crate::header::{self, DATA_ALIGN, HEADER_SPACE, Header, REQUIRED, Section, TABLE_ALIGN, Tag, VERSION};
use crate::schema::{Layout, ModelCard, Program, SelfTest, TextConfig, Weight};
use crate::verify;

/// Alignment of each weight in `WDAT`.
pub const WEIGHT_ALIGN: u64 = 64;

/// A weight before its bytes are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// Name from the IR; unique together with `layout`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents, `[n]` or `[n, k]`.
    pub shape: Vec<u64>,
    /// Order of the elements.
    pub layout: Layout,
}

/// All of a plan but the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Tables {
    /// Section `CARD`.
    pub card: ModelCard,
    /// Section `PROG`.
    pub programs: Vec<Program>,
    /// Section `CODE`, which the programs' modules point into; left out where it is empty.
    pub code: Vec<u8>,
    /// Section `TEXT`.
    pub text: TextConfig,
    /// Section `TOKN`, left out where there is no tokenizer.
    pub tokenizer: Option<Vec<u8>>,
    /// Section `TEST`, left out where there is no self-test.
    pub self_test: Option<SelfTest>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Bytes of `WDAT`.
    pub weight_bytes: u64,
    /// The weight table.
    pub weights: Vec<Weight>,
}

/// A plan on its way to disk. Dropped before `finish`, it leaves nothing behind.
#[derive(Debug)]
pub struct PlanWriter {
    path: PathBuf,
    temp: PathBuf,
    file: File,
    weights: Vec<Weight>,
    data_bytes: u64,
    states: Mutex<Vec<State>>,
    blocks: Blocks,
    renamed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Claimed,
    Written([u8; 32]),
}

impl PlanWriter {
    /// Starts a plan at `path` with these weights, in this order. `table_bytes` is a guess of what comes beside the
    /// weights (tokenizer, tables), used only to check the free disk.
    pub fn create(path: &Path, specs: Vec<WeightSpec>, table_bytes: u64) -> Result<Self, PlanError> {
        let (weights, data_bytes) = place(specs)?;
        let need = HEADER_SPACE + data_bytes + table_bytes;
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let io = |action, source| PlanError::Io { path: path.to_path_buf(), action, source };
        let Some(name) = path.file_name() else {
            return Err(io("cannot create", io::Error::from(io::ErrorKind::InvalidFilename)));
        };
        remove_abandoned(folder, &name.to_string_lossy());
        let free = free_bytes(folder).map_err(|e| io("cannot read the free disk of its folder", e))?;
        if free < need {
            return Err(PlanError::DiskFull { path: path.to_path_buf(), need, free });
        }
        if path.is_dir() {
            return Err(io("cannot create", io::Error::from(io::ErrorKind::IsADirectory)));
        }
        // Process and counter only keep writers apart: the name does not reach the file's bytes.
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temp = folder.join(format!(".{}.{}-{n}.part", name.to_string_lossy(), std::process::id()));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temp)
            .map_err(|e| io("cannot create", e))?;
        // Held until the writer ends, however it ends: tells a live writer's file from an abandoned one. A file system
        // without locks only loses that.
        drop(file.try_lock());
        let states = Mutex::new(vec![State::Free; weights.len()]);
        let blocks = Blocks::default();
        let path = path.to_path_buf();
        let writer = PlanWriter { path, temp, file, weights, data_bytes, states, blocks, renamed: false };
        writer.file.set_len(HEADER_SPACE + data_bytes).map_err(|e| io("cannot reserve", e))?;
        Ok(writer)
    }

    /// The file while it is being written; to be removed by whoever ends the process without dropping the writer.
    pub fn temp_path(&self) -> &Path {
        &self.temp
    }

    /// The weights with offsets and sizes; hashes are zero until written.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// Bytes of all weights with the padding between them.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Takes weight `index` for writing from its first byte to its last. Several threads may write different weights.
    pub fn weight(&self, index: usize) -> Result<WeightSink<'_>, PlanError> {
        let mut states = self.states();
        match states.get_mut(index) {
            Some(state @ State::Free) => *state = State::Claimed,
            Some(_) => return Err(self.misuse(index, "is written twice")),
            None => return Err(PlanError::Writer { what: format!("weight {index} does not exist") }),
        }
        Ok(WeightSink { writer: self, index, written: 0, hasher: blake3::Hasher::new() })
    }

    /// Writes all of weight `index`.
    pub fn write_weight(&self, index: usize, bytes: &[u8]) -> Result<(), PlanError> {
        let mut sink = self.weight(index)?;
        sink.write(bytes)?;
        sink.finish()
    }

    /// Writes tables and header, waits for the disk and gives the file its name. The tables are verified first.
    pub fn finish(mut self, tables: &Tables) -> Result<Written, PlanError> {
        let states = std::mem::take(&mut *self.states());
        for (index, state) in states.into_iter().enumerate() {
            match state {
                State::Written(hash) => self.weights[index].hash = hash,
                State::Free | State::Claimed => return Err(self.misuse(index, "is not written")),
            }
        }
        debug_assert!(self.blocks.is_empty(), "every weight is written, so every block is");
        let parts = verify::Parts {
            card: &tables.card,
            programs: &tables.programs,
            weights: &self.weights,
            data_bytes: self.data_bytes,
            code: &tables.code,
            text: &tables.text,
            self_test: tables.self_test.as_ref(),
        };
        verify::verify(&parts)
            .map_err(|fault| PlanError::Invalid { path: self.path.clone(), fault: Box::new(fault) })?;

        let (sections, blobs) = lay_out(tables, &self.weights, self.data_bytes)?;
        let header = Header {
            version: VERSION,
            producer: tables.card.producer.clone(),
            flags: header::shell_line(&tables.card.flags),
            sections,
        };
        for (section, blob) in header.sections.iter().zip(&blobs) {
            self.write_at(section.offset, blob)?;
        }
        self.write_at(0, &header.encode()?)?;
        let file_bytes = header.sections.iter().map(|s| s.offset + s.length).max().unwrap_or(HEADER_SPACE);
        // The last section may be empty; the reader wants the file to end where the directory says.
        self.file.set_len(file_bytes).map_err(|e| self.io("cannot set the length", e))?;
        self.file.sync_all().map_err(|e| self.io("cannot write to disk", e))?;
        fs::rename(&self.temp, &self.path).map_err(|e| self.io("cannot rename into place", e))?;
        self.renamed = true;
        if let Some(folder) = self.temp.parent() {
            // The rename itself is durable only once the folder is; a folder that cannot be opened is not an error.
            if let Ok(folder) = File::open(folder) {
                folder.sync_all().map_err(|e| self.io("cannot write its folder to disk", e))?;
            }
        }
        Ok(Written { file_bytes, weight_bytes: self.data_bytes, weights: std::mem::take(&mut self.weights) })
    }

    /// `bytes` at `offset` of the weights' section. Bytes between weights become zero.
    fn write_weights(&self, offset: u64, bytes: &[u8]) -> Result<(), PlanError> {
        let wanted = |range: Range<u64>| {
            let first = self.weights.partition_point(|w| HEADER_SPACE + w.offset + w.bytes <= range.start);
            let within = self.weights[first..].iter().take_while(|w| HEADER_SPACE + w.offset < range.end);
            within
                .map(|w| {
                    let start = HEADER_SPACE + w.offset;
                    (start + w.bytes).min(range.end) - start.max(range.start)
                })
                .sum()
        };
        self.blocks
            .write(&self.file, HEADER_SPACE + offset, bytes, HEADER_SPACE + self.data_bytes, wanted)
            .map_err(|e| self.io("cannot write", e))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), PlanError> {
        self.file.write_all_at(bytes, offset).map_err(|e| self.io("cannot write", e))
    }

    fn states(&self) -> MutexGuard<'_, Vec<State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn io(&self, action: &'static str, source: io::Error) -> PlanError {
        PlanError::Io { path: self.path.clone(), action, source }
    }

    fn misuse(&self, index: usize, what: &str) -> PlanError {
        PlanError::Writer { what: format!("weight {} {what}", self.weights[index].name) }
    }
}

impl Drop for PlanWriter {
    fn drop(&mut self) {
        if !self.renamed {
            // Nothing useful can be done when even removing fails.
            let _ = fs::remove_file(&self.temp);
        }
    }
}

/// One weight being written in order.
#[derive(Debug)]
pub struct WeightSink<'w> {
    writer: &'w PlanWriter,
    index: usize,
    written: u64,
    hasher: blake3::Hasher,
}

impl WeightSink<'_> {
    /// Appends bytes. Pieces of 128 KiB and more hash at full speed.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), PlanError> {
        let weight = &self.writer.weights[self.index];
        let end = self.written + bytes.len() as u64;
        if end > weight.bytes {
            return Err(self.writer.misuse(self.index, "is given more bytes than its layout has"));
        }
        self.writer.write_weights(weight.offset + self.written, bytes)?;
        self.hasher.update(bytes);
        self.written = end;
        Ok(())
    }

    /// Ends the weight; all its bytes must have come.
    pub fn finish(self) -> Result<(), PlanError> {
        if self.written != self.writer.weights[self.index].bytes {
            return Err(self.writer.misuse(self.index, "is given fewer bytes than its layout has"));
        }
        self.writer.states()[self.index] = State::Written(*self.hasher.finalize().as_bytes());
        Ok(())
    }
}

/// Offsets in order of the list, each the next multiple of `WEIGHT_ALIGN`; and the bytes of all.
pub(crate) fn place(specs: Vec<WeightSpec>) -> Result<(Vec<Weight>, u64), PlanError> {
    let mut end = 0u64;
    let mut weights = Vec::with_capacity(specs.len());
    for WeightSpec { name, dtype, shape, layout } in specs {
        let placed = layout.bytes(dtype, &shape).and_then(|bytes| {
            Some((bytes, end, end.checked_add(bytes)?.checked_next_multiple_of(WEIGHT_ALIGN)?))
        });
        let Some((bytes, offset, next)) = placed.filter(|p| p.2 < 1 << 60) else {
            let layout = layout.name();
            return Err(PlanError::Writer {
                what: format!("weight {name}: {layout} holds no {dtype}{shape:?}"),
            });
        };
        end = next;
        weights.push(Weight { name, dtype, shape, layout, offset, bytes, hash: [0; 32] });
    }
    Ok((weights, end))
}

/// The directory with all offsets and hashes, and the bytes of each section but `WDAT`, whose entry is empty here.
pub(crate) fn lay_out(
    tables: &Tables,
    weights: &Vec<Weight>,
    data_bytes: u64,
) -> Result<(Vec<Section>, Vec<Vec<u8>>), PlanError> {
    let mut sections = vec![Section {
        tag: header::WDAT,
        version: header::version_of(header::WDAT),
        flags: REQUIRED,
        offset: HEADER_SPACE.next_multiple_of(DATA_ALIGN),
        length: data_bytes,
        hash: hash_of_hashes(weights),
    }];
    let mut blobs = vec![Vec::new()];
    let mut add = |tag: Tag, flags: u16, blob: Vec<u8>| {
        let end = sections.last().map_or(HEADER_SPACE, |s: &Section| s.offset + s.length);
        sections.push(Section {
            tag,
            version: header::version_of(tag),
            flags,
            offset: end.next_multiple_of(TABLE_ALIGN),
            length: blob.len() as u64,
            hash: *blake3::hash(&blob).as_bytes(),
        });
        blobs.push(blob);
    };
    add(header::CARD, REQUIRED, table(header::CARD, &tables.card)?);
    add(header::PROG, REQUIRED, table(header::PROG, &tables.programs)?);
    add(header::WTAB, REQUIRED, table(header::WTAB, weights)?);
    if !tables.code.is_empty() {
        add(header::CODE, REQUIRED, tables.code.clone());
    }
    add(header::TEXT, REQUIRED, table(header::TEXT, &tables.text)?);
    if let Some(tokenizer) = &tables.tokenizer {
        add(header::TOKN, REQUIRED, tokenizer.clone());
    }
    if let Some(test) = &tables.self_test {
        add(header::TEST, 0, table(header::TEST, test)?);
    }
    Ok((sections, blobs))
}

fn table<T: Encode>(tag: Tag, value: &T) -> Result<Vec<u8>, PlanError> {
    codec::encode(value)
        .map_err(|e| PlanError::Writer { what: format!("section {}: {e}", tag.escape_ascii()) })
}

/// `WDAT`'s hash in the directory: cheap to check at load, and it pins every weight.
pub(crate) fn hash_of_hashes(weights: &[Weight]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for w in weights {
        hasher.update(&w.hash);
    }
    *hasher.finalize().as_bytes()
}

/// Removes temporary files for a plan of this name that a killed writer left behind: nobody holds their lock.
fn remove_abandoned(folder: &Path, name: &str) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let prefix = format!(".{name}.");
    for entry in entries.flatten() {
        let found = entry.file_name();
        let found = found.to_string_lossy();
        if found.starts_with(&prefix)
            && found.ends_with(".part")
            && File::open(entry.path()).is_ok_and(|f| f.try_lock().is_ok())
        {
            // What cannot be removed only takes up room, as before.
            drop(fs::remove_file(entry.path()));
        }
    }
}

fn free_bytes(folder: &Path) -> io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(folder.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `name` is a C string and `stat` has room for what the call writes.
    if unsafe { libc::statvfs(name.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it has filled `stat`.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
