//! Modules and their blobs in `CODE`: where the bytes lie and what they are. What code does is not looked at.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Parts, VerifyError};
use crate::code::CODE_ALIGN;
use crate::schema::{Blob, Entry, Program, Target};

/// Kernels of a program by module and name.
pub(super) type Entries<'a> = HashMap<(u32, &'a str), &'a Entry>;

/// The kernels of a checked program.
pub(super) fn entries(p: &Program) -> Entries<'_> {
    let mut all = Entries::new();
    for (i, module) in p.modules.iter().enumerate() {
        all.extend(module.entries.iter().map(|e| ((i as u32, e.name.as_str()), e)));
    }
    all
}

/// All modules of all programs: a blob may belong to several.
pub(super) fn check(parts: &Parts<'_>) -> Result<(), VerifyError> {
    let mut blobs: Blobs<'_> = BTreeMap::new();
    for p in parts.programs {
        let cpu = p.target == Target::Cpu;
        if cpu && !p.modules.is_empty() {
            return Err(VerifyError::DeviceOnCpu { at: format!("program {}", p.name), what: "modules" });
        }
        for (i, m) in p.modules.iter().enumerate() {
            let at = || format!("program {}: module {i} {}", p.name, m.name);
            if m.cubin.is_none() && m.ptx.is_none() {
                return Err(VerifyError::ModuleEmpty { at: at() });
            }
            let mut names = HashSet::new();
            if let Some(entry) = m.entries.iter().find(|e| e.name.is_empty() || !names.insert(&e.name)) {
                return Err(VerifyError::EntryName { at: at(), entry: entry.name.clone() });
            }
            for (blob, is_ptx) in m.cubin.iter().map(|b| (b, false)).chain(m.ptx.iter().map(|b| (b, true))) {
                range(blob, parts.code, &at)?;
                blobs.entry((blob.offset, blob.bytes, blob.hash)).or_insert((&m.name, false)).1 |= is_ptx;
            }
        }
    }
    apart(&blobs)?;
    let mut hashes = HashSet::new();
    for ((offset, bytes, hash), (module, is_ptx)) in blobs {
        let at = || format!("code of module {module}");
        let content = &parts.code[offset as usize..(offset + bytes) as usize];
        if *blake3::hash(content).as_bytes() != hash {
            return Err(VerifyError::BlobHash { at: at() });
        }
        if !hashes.insert(hash) {
            return Err(VerifyError::BlobTwice { at: at() });
        }
        if is_ptx && std::str::from_utf8(content).map_or(true, |text| text.contains('\0')) {
            return Err(VerifyError::PtxText { at: at() });
        }
    }
    Ok(())
}

/// Blobs by offset, bytes and hash: a module that has it, and whether it is PTX.
type Blobs<'a> = BTreeMap<(u64, u64, [u8; 32]), (&'a str, bool)>;

fn range(blob: &Blob, code: &[u8], at: &dyn Fn() -> String) -> Result<(), VerifyError> {
    let Blob { offset, bytes, .. } = *blob;
    if !offset.is_multiple_of(CODE_ALIGN) {
        return Err(VerifyError::BlobAlignment { at: at(), offset });
    }
    let code_bytes = code.len() as u64;
    if bytes == 0 || offset.checked_add(bytes).is_none_or(|end| end > code_bytes) {
        return Err(VerifyError::BlobRange { at: at(), offset, bytes, code_bytes });
    }
    Ok(())
}

/// Blobs that differ share no byte, so that together they are no longer than the section.
fn apart(blobs: &Blobs<'_>) -> Result<(), VerifyError> {
    for ((a, (first, _)), (b, (second, _))) in blobs.iter().zip(blobs.iter().skip(1)) {
        if a.0 + a.1 > b.0 {
            let [first, second] = [first, second].map(ToString::to_string);
            return Err(VerifyError::BlobOverlap { first, second });
        }
    }
    Ok(())
}
