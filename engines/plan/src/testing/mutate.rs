//! Edits of plan files with the hashes made right again.

use super::{numbers, small_weight_bytes};
use crate::codec;
use crate::error::PlanError;
use crate::header::{self, ENTRY_BYTES, HEADER_SPACE, Header, Section, TABLE_ALIGN, VERSION};
use crate::reader::Plan;
use crate::schema::{Program, Weight};
use crate::writer::{Tables, hash_of_hashes, lay_out};

/// A file in memory of these tables, with pattern bytes for the weights.
pub(crate) fn assemble(
    tables: &Tables,
    weights: &Vec<Weight>,
    data_bytes: u64,
) -> Result<Vec<u8>, PlanError> {
    let (sections, mut blobs) = lay_out(tables, weights, data_bytes)?;
    let mut data = vec![0; data_bytes as usize];
    for w in weights {
        data[w.offset as usize..][..w.bytes as usize].copy_from_slice(&small_weight_bytes(w));
    }
    blobs[0] = data;
    let header = Header {
        version: VERSION,
        producer: tables.card.producer.clone(),
        flags: header::shell_line(&tables.card.flags),
        sections,
    };
    join(&header, &blobs)
}

fn join(header: &Header, blobs: &[Vec<u8>]) -> Result<Vec<u8>, PlanError> {
    let mut file = header.encode()?;
    for (section, blob) in header.sections.iter().zip(blobs) {
        file.resize(section.offset as usize, 0);
        file.extend(blob);
    }
    Ok(file)
}

/// Makes all hashes of an edited plan right, as far as its header can be followed: sections, weights, code, their
/// tables and the header. What cannot be followed stays as it is.
pub fn reseal(file: &mut [u8]) {
    let Some(directory) = directory(file) else { return };
    let entry = |file: &[u8], at: usize| Section {
        tag: array(file, at),
        version: u16::from_le_bytes(array(file, at + 4)),
        flags: u16::from_le_bytes(array(file, at + 6)),
        offset: u64::from_le_bytes(array(file, at + 8)),
        length: u64::from_le_bytes(array(file, at + 16)),
        hash: array(file, at + 24),
    };
    let length = file.len();
    let range = |s: &Section| -> Option<std::ops::Range<usize>> {
        let (start, end) = (s.offset as usize, s.offset.checked_add(s.length)? as usize);
        (start <= end && end <= length).then_some(start..end)
    };
    let entries: Vec<(usize, Section)> =
        directory.clone().step_by(ENTRY_BYTES).map(|at| (at, entry(file, at))).collect();
    let find = |tag| entries.iter().find(|(_, s)| s.tag == tag).and_then(|(at, s)| Some((*at, range(s)?)));
    let (table, data) = (find(header::WTAB), find(header::WDAT));

    let mut weights = None;
    if let (Some((_, table)), Some((_, data))) = (&table, &data)
        && let Ok(mut decoded) = codec::decode::<Vec<Weight>>(&file[table.clone()])
    {
        for w in &mut decoded {
            let end = w.offset.checked_add(w.bytes).filter(|end| *end <= data.len() as u64);
            if let Some(end) = end {
                let bytes = &file[data.start + w.offset as usize..data.start + end as usize];
                w.hash = *blake3::hash(bytes).as_bytes();
            }
        }
        // Hashes have a fixed size, so the table keeps its length.
        if let Ok(bytes) = codec::encode(&decoded)
            && bytes.len() == table.len()
        {
            file[table.clone()].copy_from_slice(&bytes);
            weights = Some(hash_of_hashes(&decoded));
        }
    }
    if let (Some((_, table)), Some((_, code))) = (find(header::PROG), find(header::CODE))
        && let Ok(mut decoded) = codec::decode::<Vec<Program>>(&file[table.clone()])
    {
        let modules = decoded.iter_mut().flat_map(|p| &mut p.modules);
        for blob in modules.flat_map(|m| m.cubin.iter_mut().chain(&mut m.ptx)) {
            if let Some(end) = blob.offset.checked_add(blob.bytes).filter(|end| *end <= code.len() as u64) {
                let bytes = &file[code.start + blob.offset as usize..code.start + end as usize];
                blob.hash = *blake3::hash(bytes).as_bytes();
            }
        }
        if let Ok(bytes) = codec::encode(&decoded)
            && bytes.len() == table.len()
        {
            file[table].copy_from_slice(&bytes);
        }
    }
    let hashes: Vec<(usize, [u8; 32])> = entries
        .iter()
        .filter_map(|(at, s)| {
            let bytes = &file[range(s)?];
            let hash = if s.tag == header::WDAT { weights? } else { *blake3::hash(bytes).as_bytes() };
            Some((at + 24, hash))
        })
        .collect();
    for (at, hash) in hashes {
        // An edited directory may lie over sections; then the order of these writes decides.
        file[at..at + 32].copy_from_slice(&hash);
    }
    let end = directory.end;
    let hash = *blake3::hash(&file[..end]).as_bytes();
    file[end..end + 32].copy_from_slice(&hash);
}

/// Where the directory's entries lie, if the lengths before them lead there.
fn directory(file: &[u8]) -> Option<std::ops::Range<usize>> {
    let total = u32::from_le_bytes(file.get(12..16)?.try_into().ok()?) as usize;
    let u16_at = |at: usize| Some(u16::from_le_bytes(file.get(at..at + 2)?.try_into().ok()?) as usize);
    let flags = 18 + u16_at(16)?;
    let count = flags + 2 + u16_at(flags)?;
    let start = count + 2;
    let end = start + u16_at(count)? * ENTRY_BYTES;
    (end + 32 == total && total <= file.len()).then_some(start..end)
}

fn array<const N: usize>(file: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&file[at..at + N]);
    out
}

/// Endless edits of the valid plan `file`, all resealed, the same for the same seed. A third edit bytes in place; a
/// third change one table's bytes in number too and put the file together again, so that later fields move; a third
/// set fields of the decoded tables.
pub fn mutations(file: &[u8], seed: u64) -> Result<Mutations, PlanError> {
    let plan = Plan::from_bytes(file.to_vec())?;
    let blobs = plan
        .header()
        .sections
        .iter()
        .map(|s| file[s.offset as usize..(s.offset + s.length) as usize].to_vec())
        .collect();
    let tables = Tables {
        card: plan.card().clone(),
        programs: plan.programs().to_vec(),
        code: plan.code_section().to_vec(),
        text: plan.text().clone(),
        tokenizer: plan.tokenizer_json().map(<[u8]>::to_vec),
        self_test: plan.self_test().cloned(),
    };
    Ok(Mutations {
        file: file.to_vec(),
        header: plan.header().clone(),
        blobs,
        tables,
        weights: plan.weights().to_vec(),
        random: Random(seed),
        current: Vec::new(),
    })
}

/// See `mutations`.
#[derive(Debug)]
pub struct Mutations {
    file: Vec<u8>,
    header: Header,
    blobs: Vec<Vec<u8>>,
    tables: Tables,
    weights: Vec<Weight>,
    random: Random,
    current: Vec<u8>,
}

impl Mutations {
    /// The next edited file.
    pub fn next_file(&mut self) -> &[u8] {
        match self.random.below(3) {
            0 => self.in_place(),
            1 => self.in_table(),
            _ => self.in_meaning(),
        }
        reseal(&mut self.current);
        &self.current
    }

    fn in_place(&mut self) {
        self.current.clear();
        self.current.extend(&self.file);
        // Tables and header, not the weights: there every byte is as good as any other.
        let target = 1 + self.random.below(self.header.sections.len());
        let (start, length) = match self.header.sections.get(target) {
            Some(s) => (s.offset as usize, s.length as usize),
            None => (0, HEADER_SPACE as usize / 8),
        };
        if length == 0 {
            return;
        }
        for _ in 0..1 + self.random.below(4) {
            let at = start + self.random.below(length);
            let value = self.random.byte();
            if let Some(byte) = self.current.get_mut(at) {
                *byte = value;
            }
        }
    }

    fn in_table(&mut self) {
        let target = 1 + self.random.below(self.blobs.len() - 1);
        let mut blob = self.blobs[target].clone();
        for _ in 0..1 + self.random.below(3) {
            let at = self.random.below(blob.len() + 1);
            let end = (at + self.random.below(6)).min(blob.len());
            let new: Vec<u8> = match self.random.below(5) {
                // A wider number in place of a narrow one.
                0 => [vec![251], self.random.bytes(2)].concat(),
                1 => [vec![252], self.random.bytes(4)].concat(),
                2 => [vec![253], self.random.bytes(8)].concat(),
                3 => {
                    let n = self.random.below(6);
                    self.random.bytes(n)
                }
                // A piece of the same table.
                _ => {
                    let from = self.random.below(blob.len() + 1);
                    let to = (from + self.random.below(64)).min(blob.len());
                    blob[from..to].to_vec()
                }
            };
            let end = if self.random.below(2) == 0 { (at + 1).min(blob.len()) } else { end };
            blob.splice(at..end, new);
        }
        self.replace(vec![(target, blob)]);
    }

    fn in_meaning(&mut self) {
        let (mut tables, mut weights) = (self.tables.clone(), self.weights.clone());
        for _ in 0..1 + self.random.below(2) {
            let mut fields = numbers::all(&mut tables, &mut weights);
            let field = fields.swap_remove(self.random.below(fields.len()));
            field.set(self.random.below(64), self.random.next());
        }
        // Any value of a table has an encoding.
        let Ok((sections, blobs)) = lay_out(&tables, &weights, 0) else { return };
        let edited = sections.iter().zip(blobs).skip(1).filter_map(|(s, blob)| {
            Some((self.header.sections.iter().position(|mine| mine.tag == s.tag)?, blob))
        });
        let edited = edited.collect();
        self.replace(edited);
    }

    /// The file with these sections' bytes, those after them moved.
    fn replace(&mut self, edited: Vec<(usize, Vec<u8>)>) {
        let mut header = self.header.clone();
        let mut end = 0;
        let mut blobs: Vec<&Vec<u8>> = self.blobs.iter().collect();
        for (i, blob) in &edited {
            blobs[*i] = blob;
        }
        for (i, (section, blob)) in header.sections.iter_mut().zip(&blobs).enumerate() {
            section.length = blob.len() as u64;
            if i > 0 {
                section.offset = u64::next_multiple_of(end, TABLE_ALIGN);
            }
            end = section.offset + section.length;
        }
        self.current.clear();
        // Never fails: the header is as long as the one that it was parsed from.
        self.current.extend(header.encode().unwrap_or_default());
        for (section, blob) in header.sections.iter().zip(blobs) {
            self.current.resize(section.offset as usize, 0);
            self.current.extend(blob);
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Any byte, but those at the borders of the encoding more often.
    fn byte(&mut self) -> u8 {
        let borders = [0, 1, 2, 63, 64, 127, 128, 250, 251, 252, 253, 254, 255];
        if self.below(2) == 0 { borders[self.below(borders.len())] } else { self.next() as u8 }
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.byte()).collect()
    }
}
