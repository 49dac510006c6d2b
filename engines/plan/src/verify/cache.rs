//! Cache groups. A layer takes at least the bytes of its elements; an engine that pads checks its own, larger size.

use super::{MAX_EXTENT, VerifyError, order};
use crate::schema::{CacheGroup, CacheKind, Launch, MAX_CACHE_GROUPS, Place, Program};

pub(super) fn check(p: &Program) -> Result<(), VerifyError> {
    let count = p.cache_groups.len();
    if count > MAX_CACHE_GROUPS {
        return Err(VerifyError::CacheCount { program: p.name.clone(), count, most: MAX_CACHE_GROUPS });
    }
    let mut first = None;
    for (i, g) in p.cache_groups.iter().enumerate() {
        group(&p.name, i, g)?;
        if let CacheKind::Paged { block, .. } = g.kind {
            let other = *first.get_or_insert(block);
            if block != other {
                let at = format!("program {}: cache group {i}", p.name);
                return Err(VerifyError::CacheBlocksDiffer { at, block, other });
            }
        }
    }
    Ok(())
}

/// An attention sees no more of a cache group than the group keeps.
pub(super) fn window(p: &Program, index: usize, l: &Launch) -> Result<(), VerifyError> {
    for operand in l.inputs.iter().filter(|_| l.kernel == "attention") {
        let Place::Cache { group, .. } = operand.place else { continue };
        let kind = p.cache_groups.get(group as usize).map(|g| g.kind);
        let Some(CacheKind::Paged { window: Some(kept), .. }) = kind else { continue };
        let window = l.int("window").filter(|w| *w > 0);
        if window.is_none_or(|w| w > u64::from(kept)) {
            let window = window.map_or_else(|| "all".to_string(), |w| w.to_string());
            return Err(VerifyError::CacheWindow { at: order::place(p, index, l), window, kept });
        }
    }
    Ok(())
}

fn group(program: &str, index: usize, group: &CacheGroup) -> Result<(), VerifyError> {
    let at = || format!("program {program}: cache group {index}");
    let extent = |what, value: u64| {
        if value == 0 || value > MAX_EXTENT {
            return Err(VerifyError::CacheExtent { at: at(), what });
        }
        Ok(())
    };
    let block = |block: u32| match block {
        16 | 32 | 64 | 128 => Ok(u128::from(block)),
        _ => Err(VerifyError::CacheBlock { at: at(), block }),
    };
    extent("bytes_per_block", group.bytes_per_block)?;
    // Elements of a layer per block, for one head of one element.
    let (positions, per_head) = match group.kind {
        CacheKind::Paged { block: b, window } => {
            extent("window", window.map_or(1, u64::from))?;
            (block(b)?, true)
        }
        CacheKind::Latent { block: b, width } => {
            extent("width", u64::from(width))?;
            (block(b)? * u128::from(width), false)
        }
        CacheKind::Recurrent { bytes } => {
            extent("bytes", bytes)?;
            (0, false)
        }
        CacheKind::Cross { block: b } => (block(b)?, true),
    };
    let mut regions = Vec::with_capacity(group.layers.len());
    for (i, layer) in group.layers.iter().enumerate() {
        let at = || format!("program {program}: cache group {index} layer {i}");
        if layer.kv_heads == 0 || layer.head_dim == 0 {
            return Err(VerifyError::CacheExtent { at: at(), what: "kv_heads or head_dim" });
        }
        if !layer.dtype.is_float() {
            return Err(VerifyError::CacheDType { at: at(), dtype: layer.dtype });
        }
        if !layer.offset.is_multiple_of(64) {
            return Err(VerifyError::CacheAlignment { at: at(), offset: layer.offset });
        }
        let heads = if per_head { 2 * u128::from(layer.kv_heads) * u128::from(layer.head_dim) } else { 1 };
        let start = u128::from(layer.offset);
        let end = start + positions * heads * layer.dtype.size() as u128;
        if end > u128::from(group.bytes_per_block) {
            return Err(VerifyError::CacheRange { at: at(), end, bytes_per_block: group.bytes_per_block });
        }
        regions.push((start, end, i));
    }
    regions.sort_unstable();
    for pair in regions.windows(2) {
        if pair[0].1 > pair[1].0 {
            return Err(VerifyError::CacheOverlap { at: at(), first: pair[0].2, second: pair[1].2 });
        }
    }
    Ok(())
}
